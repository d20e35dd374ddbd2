-- What the mapping `pads_soft_delete` expects of the database: the schema of PADS of 2025-05-06, which marks applications as
-- deleted. Names are unqualified on purpose: the setting DB_SCHEMA names the tables' schema.

CREATE TABLE pay_plans (
    plan_type VARCHAR(25) PRIMARY KEY,
    monthly_relay_limit INT NOT NULL,
    throughput_limit INT NOT NULL
);

CREATE TABLE accounts (
    id VARCHAR(10) PRIMARY KEY,
    plan_type VARCHAR(25) NOT NULL REFERENCES pay_plans (plan_type)
);

\ir ../shared/pads_applications.sql
