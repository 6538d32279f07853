"""finegrain in Dagster: the assets, what starts them, what watches them (docs/how-to/schedule.md)."""

import warnings

from dagster import BetaWarning

# Said at each start of each process, of what the locks pin anyway.
warnings.filterwarnings("ignore", category=BetaWarning)
