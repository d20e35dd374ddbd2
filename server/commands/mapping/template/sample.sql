-- Rows for `pads-cdc mapping test`, which changes each column of them in turn. Have some of every kind: endpoints of one team
-- and of another, with a limit and without. Without this file rows are made up.
INSERT INTO tiers VALUES ('small', 5), ('large', NULL);
INSERT INTO teams VALUES (1, 'small'), (2, 'large'), (3, NULL);
INSERT INTO tokens VALUES
    ('00000000-0000-0000-0000-000000000001', 1, 'key 1'),
    ('00000000-0000-0000-0000-000000000002', 1, 'key 2'),
    ('00000000-0000-0000-0000-000000000003', 2, 'key 3'),
    ('00000000-0000-0000-0000-000000000004', 3, 'key 4');
