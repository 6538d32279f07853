"""Data quality: the doctor, alerts, the report on published data, and the cleaning score."""
