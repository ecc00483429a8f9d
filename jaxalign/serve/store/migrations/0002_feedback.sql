-- Feedback is few of a user's rows: new rows of it, and earlier ones about the same answer, are
-- found without reading the answers.
CREATE INDEX events_feedback ON events (user_id, received, id) WHERE kind <> 'answers';

CREATE INDEX events_subject ON events (user_id, kind, subject) WHERE kind <> 'answers';
