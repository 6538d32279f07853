-- Bounds and medians of what customers and products are: few rows, so recomputed in every build.
{{ numeric_fits("(select * from " ~ ref('int_cleaning__profile_histogram') ~ " where bucket is not null) as numbers") }}
