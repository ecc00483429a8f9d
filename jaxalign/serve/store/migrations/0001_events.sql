-- Each statement runs on SQLite and on PostgreSQL alike. Times are microseconds since 1970.
CREATE TABLE users (
    user_id TEXT PRIMARY KEY,
    namespace TEXT NOT NULL,
    created BIGINT NOT NULL,
    events BIGINT NOT NULL,
    version TEXT NOT NULL
);

CREATE INDEX users_namespace ON users (namespace);

CREATE TABLE events (
    id TEXT PRIMARY KEY,
    received BIGINT NOT NULL,
    user_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    subject TEXT NOT NULL,
    prompt TEXT,
    answers TEXT,
    value TEXT NOT NULL,
    space TEXT NOT NULL,
    source TEXT,
    UNIQUE (user_id, source)
);

CREATE INDEX events_user ON events (user_id, received, id);

CREATE INDEX events_received ON events (received);

CREATE TABLE tombstones (
    digest TEXT PRIMARY KEY,
    erased BIGINT NOT NULL,
    events BIGINT NOT NULL
);

CREATE TABLE settings (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
);
