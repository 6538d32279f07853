{{ config(
    meta={'always': true},
    pre_hook="{{ set_since(watermark('int_events__validated')) }}",
    post_hook="{{ move_watermark() }}",
) }}
-- The rows that this build has to validate: all of them in a full build, else those that came since the last one.
select * from {{ ref('int_events__normalized') }}
