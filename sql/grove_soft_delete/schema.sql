-- What the mapping `grove_soft_delete` expects of the database: the live portal, which marks rows as deleted.
-- Names are unqualified on purpose: the setting DB_SCHEMA names the tables' schema.

CREATE TABLE pay_plans (
    plan_type VARCHAR(25) PRIMARY KEY,
    monthly_relay_limit INT NOT NULL,
    throughput_limit INT NOT NULL
);

CREATE TABLE accounts (
    id VARCHAR(10) PRIMARY KEY,
    plan_type VARCHAR(25) NOT NULL REFERENCES pay_plans (plan_type),
    monthly_user_limit INT,
    deleted BOOLEAN NOT NULL DEFAULT false,
    deleted_at TIMESTAMPTZ
);

CREATE TABLE users (
    id VARCHAR(10) PRIMARY KEY
);

CREATE TYPE auth_type AS ENUM ('auth0_github', 'auth0_username', 'auth0_google');

CREATE TABLE user_auth_providers (
    id SERIAL PRIMARY KEY,
    user_id VARCHAR(10) NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    type AUTH_TYPE NOT NULL,
    provider_user_id VARCHAR(255) NOT NULL,
    UNIQUE (user_id, type)
);

CREATE TABLE account_users (
    id SERIAL PRIMARY KEY,
    user_id VARCHAR(10) NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    account_id VARCHAR(10) NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
    UNIQUE (user_id, account_id)
);

CREATE TABLE portal_applications (
    id VARCHAR(24) PRIMARY KEY,
    account_id VARCHAR(10) REFERENCES accounts (id),
    name VARCHAR(255),
    deleted BOOLEAN NOT NULL DEFAULT false,
    deleted_at TIMESTAMPTZ
);

CREATE TABLE portal_application_settings (
    id SERIAL PRIMARY KEY,
    application_id VARCHAR(24) NOT NULL UNIQUE REFERENCES portal_applications (id) ON DELETE CASCADE,
    secret_key VARCHAR(64),
    secret_key_required BOOLEAN,
    environment VARCHAR(25)
);

-- A signal table: a row inserted here asks for a recompute of one application.
CREATE TABLE portal_application_changes (
    id SERIAL PRIMARY KEY,
    portal_app_id VARCHAR(24) NOT NULL,
    is_delete BOOLEAN NOT NULL DEFAULT false,
    changed_at TIMESTAMPTZ DEFAULT now()
);
