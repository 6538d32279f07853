"""Run in the environment of datacontract-cli (scripts/data_contracts): what it says of contracts, as JSON. Arguments: `lint:FILE`, or `SERVER:FILE` to test
what that server has."""

import json
import logging
import sys

from datacontract.data_contract import DataContract

logging.disable(logging.CRITICAL)
found = {}
for each in sys.argv[1:]:
    what, _, file = each.partition(":")
    contract = DataContract(data_contract_file=file, server=None if what == "lint" else what)
    run = contract.lint() if what == "lint" else contract.test()
    found[each] = {
        "passed": [check.name for check in run.checks if check.result.value == "passed"],
        "failed": [
            f"{check.name}: {check.reason}" for check in run.checks if check.result.value in ("failed", "error")
        ],
    }
print(json.dumps(found))
