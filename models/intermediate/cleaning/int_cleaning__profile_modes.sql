-- The most frequent labels of customers: few rows, so recomputed in every build.
{{ mode_fits("(select * from " ~ ref('int_cleaning__profile_histogram') ~ " where observed is not null) as labels") }}
