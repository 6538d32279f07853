-- Bounds and medians of what customers and products are: few rows, so made anew in every build.
{{ numeric_fits("(select * from " ~ ref('int_cleaning__profile_histogram') ~ " where bucket is not null) as numbers") }}
