-- The most frequent labels of customers: few rows, so made anew in every build.
{{ mode_fits("(select * from " ~ ref('int_cleaning__profile_histogram') ~ " where observed is not null) as labels") }}
