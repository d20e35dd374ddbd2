-- What the mapping `portal_db` expects of the database: the part of the portal database in PATH's repository (portal-db)
-- that concerns endpoints. Names are unqualified on purpose: the setting DB_SCHEMA names the tables' schema.

CREATE TYPE plan_interval AS ENUM ('day', 'month', 'year');

-- A limit that is NULL or 0 is no limit.
CREATE TABLE portal_plans (
    portal_plan_type VARCHAR(42) PRIMARY KEY,
    plan_usage_limit INT CHECK (plan_usage_limit >= 0),
    plan_usage_limit_interval PLAN_INTERVAL,
    plan_rate_limit_rps INT CHECK (plan_rate_limit_rps >= 0)
);

CREATE TABLE portal_accounts (
    portal_account_id VARCHAR(36) PRIMARY KEY DEFAULT gen_random_uuid(),
    portal_plan_type VARCHAR(42) NOT NULL REFERENCES portal_plans (portal_plan_type),
    portal_account_user_limit BIGINT CHECK (portal_account_user_limit >= 0),
    portal_account_user_limit_interval PLAN_INTERVAL,
    portal_account_user_limit_rps INT CHECK (portal_account_user_limit_rps >= 0),
    deleted_at TIMESTAMPTZ
);

CREATE TABLE portal_applications (
    portal_application_id VARCHAR(36) PRIMARY KEY DEFAULT gen_random_uuid(),
    portal_account_id VARCHAR(36) NOT NULL REFERENCES portal_accounts (portal_account_id) ON DELETE CASCADE,
    portal_application_name VARCHAR(42),
    portal_application_user_limit INT CHECK (portal_application_user_limit >= 0),
    portal_application_user_limit_interval PLAN_INTERVAL,
    portal_application_user_limit_rps INT CHECK (portal_application_user_limit_rps >= 0),
    secret_key_hash VARCHAR(255),
    secret_key_required BOOLEAN DEFAULT false,
    deleted_at TIMESTAMPTZ
);

CREATE INDEX idx_portal_applications_account ON portal_applications (portal_account_id);

-- A role sees no row of these tables, unless it owns them or bypasses row-level security, as ours has to.
ALTER TABLE portal_accounts ENABLE ROW LEVEL SECURITY;
ALTER TABLE portal_applications ENABLE ROW LEVEL SECURITY;
