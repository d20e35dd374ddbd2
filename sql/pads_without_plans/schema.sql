-- What the mapping `pads_without_plans` expects of the database: the schema of PADS from 2025-05-08 on, its last one. Plans
-- have a name, and no limits. Names are unqualified on purpose: the setting DB_SCHEMA names the tables' schema.

CREATE TABLE accounts (
    id VARCHAR(10) PRIMARY KEY,
    plan_type VARCHAR(25)
);

\ir ../shared/pads_applications.sql
