"""All scenarios by name."""

from loadtest.scenarios.load import LOAD
from loadtest.scenarios.model import Scenario
from loadtest.scenarios.trouble import TROUBLE

SCENARIOS: dict[str, Scenario] = {scenario.name: scenario for scenario in (*LOAD, *TROUBLE)}
"""Every scenario, in the order of `list`; `make lab` runs them all."""
