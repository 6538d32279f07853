"""finegrain in Dagster: assets, schedules and sensors, and alerts (docs/how-to/schedule.md)."""

import warnings

from dagster import BetaWarning

# Said at each start of each process, of what the locks pin anyway.
warnings.filterwarnings("ignore", category=BetaWarning)
