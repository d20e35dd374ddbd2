-- The method of PADS, as fast as possible: for each changed row, a trigger writes a row for each affected endpoint in the
-- writer's transaction, and notifies a listener.

CREATE FUNCTION note_application() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO portal_application_changes (portal_app_id, is_delete)
    VALUES (coalesce(new.id, old.id), tg_op = 'DELETE');
    NOTIFY portal_application_changes;
    RETURN NULL;
END
$$;

CREATE FUNCTION note_settings() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO portal_application_changes (portal_app_id) VALUES (coalesce(new.application_id, old.application_id));
    NOTIFY portal_application_changes;
    RETURN NULL;
END
$$;

CREATE FUNCTION note_account() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO portal_application_changes (portal_app_id)
    SELECT id FROM portal_applications WHERE account_id = coalesce(new.id, old.id);
    NOTIFY portal_application_changes;
    RETURN NULL;
END
$$;

CREATE FUNCTION note_plan() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO portal_application_changes (portal_app_id)
    SELECT applications.id
    FROM accounts
    INNER JOIN portal_applications AS applications ON applications.account_id = accounts.id
    WHERE accounts.plan_type = coalesce(new.plan_type, old.plan_type);
    NOTIFY portal_application_changes;
    RETURN NULL;
END
$$;

CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON portal_applications
FOR EACH ROW EXECUTE FUNCTION note_application();
CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON portal_application_settings
FOR EACH ROW EXECUTE FUNCTION note_settings();
CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON accounts
FOR EACH ROW EXECUTE FUNCTION note_account();
CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON pay_plans
FOR EACH ROW EXECUTE FUNCTION note_plan();
