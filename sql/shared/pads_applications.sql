-- The common part of both schemas of PADS that mark applications as deleted: all tables but accounts and plans.

CREATE TABLE portal_applications (
    id VARCHAR(24) PRIMARY KEY UNIQUE,
    account_id VARCHAR(10) REFERENCES accounts (id),
    deleted BOOLEAN NOT NULL DEFAULT false,
    deleted_at TIMESTAMPTZ
);

CREATE TABLE portal_application_settings (
    id SERIAL PRIMARY KEY,
    application_id VARCHAR(24) NOT NULL UNIQUE REFERENCES portal_applications (id) ON DELETE CASCADE,
    secret_key VARCHAR(64),
    secret_key_required BOOLEAN
);

-- A signal table: a row inserted here asks for a recompute of one application.
CREATE TABLE portal_application_changes (
    id SERIAL PRIMARY KEY,
    portal_app_id VARCHAR(24) NOT NULL,
    is_delete BOOLEAN NOT NULL DEFAULT false,
    changed_at TIMESTAMPTZ DEFAULT now()
);
