-- The demo's portal: 10,000 applications of 2,500 accounts on five plans, with every shape that the mapping knows:
-- keys required, not required and unsaid, no settings at all, no account, a plan without limits.

INSERT INTO pay_plans (plan_type, monthly_relay_limit, throughput_limit) VALUES
    ('free', 1000000, 30),
    ('starter', 5000000, 60),
    ('growth', 20000000, 200),
    ('scale', 100000000, 1000),
    ('unlimited', 0, 0);

INSERT INTO accounts (id, plan_type)
SELECT
    'acc_' || to_char(number, 'FM0000'),
    CASE
        WHEN number % 100 < 40 THEN 'free'
        WHEN number % 100 < 70 THEN 'starter'
        WHEN number % 100 < 90 THEN 'growth'
        WHEN number % 100 < 98 THEN 'scale'
        ELSE 'unlimited'
    END
FROM generate_series(1, 2500) AS number;

INSERT INTO users (id)
SELECT 'user_' || to_char(number, 'FM0000')
FROM generate_series(1, 3000) AS number;

INSERT INTO user_auth_providers (user_id, type, provider_user_id)
SELECT
    'user_' || to_char(number, 'FM0000'),
    'auth0_github',
    'auth0|' || md5(number::TEXT)
FROM generate_series(1, 3000) AS number;

INSERT INTO account_users (user_id, account_id)
SELECT
    'user_' || to_char(number, 'FM0000'),
    'acc_' || to_char(1 + number % 2500, 'FM0000')
FROM generate_series(1, 3000) AS number;

INSERT INTO portal_applications (id, account_id)
SELECT
    'app_' || to_char(number, 'FM00000'),
    CASE WHEN number % 100 <> 0 THEN 'acc_' || to_char(1 + number % 2500, 'FM0000') END
FROM generate_series(1, 10000) AS number;

INSERT INTO portal_application_settings (application_id, secret_key, secret_key_required)
SELECT
    'app_' || to_char(number, 'FM00000'),
    replace(gen_random_uuid()::TEXT, '-', ''),
    CASE number % 20 WHEN 0 THEN NULL WHEN 1 THEN false ELSE true END
FROM generate_series(1, 10000) AS number
WHERE number % 50 <> 0;

ANALYZE;
