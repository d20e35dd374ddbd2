"""What a table needs, read out of the mappings' own files."""

from __future__ import annotations

import re

import pytest

from cdc.mapping.mapping import load
from cdc.mapping.tables import column_to_name, keys, wanted_indexes
from tests.support import BUNDLED


def test_the_keys_of_a_schema_on_columns_and_on_tables() -> None:
    assert {(table, *sorted(columns)) for table, columns in keys(load("grove_jwt"))} == {
        ("pay_plans", "plan_type"),
        ("accounts", "id"),
        ("users", "id"),
        ("user_auth_providers", "id"),
        ("user_auth_providers", "type", "user_id"),
        ("account_users", "id"),
        ("account_users", "account_id", "user_id"),
        ("portal_applications", "id"),
        ("portal_application_settings", "id"),
        ("portal_application_settings", "application_id"),
    }


def test_tables_that_are_not_read_need_no_keys() -> None:
    assert {table for table, _ in keys(load("grove"))} == set(load("grove").reads)


@pytest.mark.parametrize("mapping", BUNDLED)
def test_every_index_that_setup_makes_is_known(mapping: str) -> None:
    loaded = load(mapping)
    wanted = list(wanted_indexes(loaded))
    assert len(wanted) == len(re.findall("^CREATE INDEX", loaded.setup, re.MULTILINE))
    of_plans = {
        "pads_without_plans": ("portal_applications", ("account_id",)),
        "portal_db": ("portal_accounts", ("portal_plan_type",)),
    }.get(mapping, ("accounts", ("plan_type",)))
    assert of_plans in [(index.table, index.columns) for index in wanted]


def test_the_column_that_saves_remembering() -> None:
    mapping = load("grove_jwt")
    assert {table: column_to_name(mapping, table) for table in mapping.reads} == {
        "portal_applications": None,
        "portal_application_settings": "application_id",
        "accounts": None,
        "pay_plans": None,
        "account_users": "account_id",
        "users": None,
        "user_auth_providers": "user_id",
    }
