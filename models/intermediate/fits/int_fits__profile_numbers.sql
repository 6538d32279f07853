-- Bounds and medians of what customers and products are: few rows, so made anew in every build.
{{ numeric_fits("(select * from " ~ ref('int_tiles__profiles') ~ " where bucket is not null) as numbers") }}
