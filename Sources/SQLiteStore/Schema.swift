internal import GRDB

/// The tables, and how they came to be.
///
/// A migration that was published never changes; the next one goes to the end of the list.
enum Schema {
  static var migrator: DatabaseMigrator {
    var migrator = DatabaseMigrator()
    migrator.registerMigration("001-sessions") { try $0.execute(sql: sessions) }
    migrator.registerMigration("002-keys") { try $0.execute(sql: keys) }
    migrator.registerMigration("003-limits") { try $0.execute(sql: limits) }
    // The code of a failure decides its status.
    migrator.registerMigration("004-failure-status") {
      try $0.execute(sql: "ALTER TABLE turns DROP COLUMN failure_status")
    }
    migrator.registerMigration("005-network") { try $0.execute(sql: network) }
    migrator.registerMigration("006-gateway") { try $0.execute(sql: gateway) }
    migrator.registerMigration("007-room") { try $0.execute(sql: room) }
    return migrator
  }

  /// Rows refer to their session by `position`, a small number, and not by its id of 16 bytes.
  ///
  /// `events` is a table without rowid: the events of a session lie side by side on disk in the order in which
  /// they are read, and there is no second index to write to. `position` of sessions is never used twice
  /// (AUTOINCREMENT), because cursors hold it. Columns that may be long are the last of a table, so that the
  /// others are read without them.
  private static let sessions = """
    CREATE TABLE sessions (
      position INTEGER PRIMARY KEY AUTOINCREMENT,
      id BLOB NOT NULL UNIQUE CHECK (length(id) = 16),
      name TEXT NOT NULL,
      created_at INTEGER NOT NULL,
      last_used INTEGER NOT NULL,
      workspace TEXT NOT NULL,
      owner TEXT,
      parent_id BLOB CHECK (length(parent_id) = 16),
      options TEXT NOT NULL,
      metadata TEXT NOT NULL,
      has_conversation INTEGER NOT NULL CHECK (has_conversation IN (0, 1)),
      deleted_at INTEGER
    ) STRICT;
    CREATE INDEX sessions_by_owner ON sessions (owner, position);
    CREATE INDEX sessions_in_deletion ON sessions (position) WHERE deleted_at IS NOT NULL;

    CREATE TABLE turns (
      position INTEGER PRIMARY KEY,
      id BLOB NOT NULL UNIQUE CHECK (length(id) = 16),
      session INTEGER NOT NULL REFERENCES sessions (position) ON DELETE CASCADE,
      number INTEGER NOT NULL,
      owner TEXT,
      state TEXT NOT NULL
        CHECK (state IN ('queued', 'running', 'completed', 'failed', 'interrupted', 'cancelled')),
      created_at INTEGER NOT NULL,
      started_at INTEGER,
      finished_at INTEGER,
      failure_status INTEGER,
      failure_retry_after INTEGER,
      input_tokens INTEGER,
      output_tokens INTEGER,
      cache_read_tokens INTEGER,
      cache_creation_tokens INTEGER,
      cost_usd REAL,
      duration_ms INTEGER,
      model_turns INTEGER,
      options TEXT NOT NULL,
      failure_code TEXT,
      failure_detail TEXT,
      prompt TEXT NOT NULL,
      result TEXT,
      structured_output TEXT,
      UNIQUE (session, number),
      CHECK ((failure_code IS NULL) = (failure_detail IS NULL)),
      CHECK ((input_tokens IS NULL) = (output_tokens IS NULL)
        AND (input_tokens IS NULL) = (cache_read_tokens IS NULL)
        AND (input_tokens IS NULL) = (cache_creation_tokens IS NULL))
    ) STRICT;
    CREATE UNIQUE INDEX turns_running ON turns (session) WHERE state = 'running';
    CREATE INDEX turns_by_state ON turns (state, session);

    CREATE TABLE events (
      session INTEGER NOT NULL REFERENCES sessions (position) ON DELETE CASCADE,
      sequence INTEGER NOT NULL,
      type TEXT NOT NULL,
      turn_id BLOB CHECK (length(turn_id) = 16),
      processed_at INTEGER NOT NULL,
      payload TEXT NOT NULL,
      PRIMARY KEY (session, sequence)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE approvals (
      position INTEGER PRIMARY KEY,
      id BLOB NOT NULL UNIQUE CHECK (length(id) = 16),
      session INTEGER NOT NULL REFERENCES sessions (position) ON DELETE CASCADE,
      turn INTEGER NOT NULL REFERENCES turns (position) ON DELETE CASCADE,
      tool_name TEXT NOT NULL,
      tool_use_id TEXT NOT NULL,
      cli_request_id TEXT NOT NULL,
      created_at INTEGER NOT NULL,
      expires_at INTEGER NOT NULL,
      state TEXT NOT NULL CHECK (state IN ('pending', 'allowed', 'denied', 'expired', 'void')),
      resolved_at INTEGER,
      remember INTEGER NOT NULL CHECK (remember IN (0, 1)),
      message TEXT,
      input TEXT NOT NULL,
      updated_input TEXT
    ) STRICT;
    CREATE INDEX approvals_by_session ON approvals (session);
    CREATE INDEX approvals_by_turn ON approvals (turn);
    CREATE INDEX approvals_pending ON approvals (turn) WHERE state = 'pending';

    -- An owner of '' stands for none: NULLs would not be equal to each other in the key.
    -- The ids are no references: a record outlives its session.
    CREATE TABLE idempotency (
      owner TEXT NOT NULL,
      scope TEXT NOT NULL,
      key TEXT NOT NULL,
      digest BLOB NOT NULL,
      session_id BLOB NOT NULL CHECK (length(session_id) = 16),
      turn_id BLOB CHECK (length(turn_id) = 16),
      created_at INTEGER NOT NULL,
      PRIMARY KEY (key, scope, owner)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX idempotency_by_age ON idempotency (created_at);

    CREATE TABLE write_check (
      id INTEGER PRIMARY KEY CHECK (id = 1),
      count INTEGER NOT NULL
    ) STRICT;
    """

  /// A key of a session is no reference to it: the key says so itself when the session is gone.
  private static let keys = """
    CREATE TABLE api_keys (
      id TEXT PRIMARY KEY,
      name TEXT NOT NULL,
      role TEXT NOT NULL CHECK (role IN ('admin', 'user', 'read')),
      session_id BLOB CHECK (length(session_id) = 16),
      digest BLOB NOT NULL CHECK (length(digest) = 32),
      created_at INTEGER NOT NULL,
      expires_at INTEGER,
      revoked_at INTEGER
    ) STRICT, WITHOUT ROWID;
    """

  /// `usage` is the books: what counts for a key in an hour since 1970, the key '' standing for none. Its rows are no
  /// references and outlive sessions. Money is in billionths of a US dollar, so that sums are exact.
  ///
  /// What turns of earlier versions used is taken over as far as their sessions are there.
  private static let limits = """
    ALTER TABLE api_keys ADD COLUMN limits TEXT NOT NULL DEFAULT '{}';
    ALTER TABLE turns ADD COLUMN reserved INTEGER;

    CREATE TABLE usage (
      key TEXT NOT NULL,
      hour INTEGER NOT NULL,
      turns INTEGER NOT NULL,
      tokens INTEGER NOT NULL,
      cost INTEGER NOT NULL,
      PRIMARY KEY (key, hour)
    ) STRICT, WITHOUT ROWID;

    INSERT INTO usage (key, hour, turns, tokens, cost)
      SELECT coalesce(sessions.owner, turns.owner, ''), coalesce(turns.finished_at, turns.created_at) / 3600000000,
        count(*), coalesce(sum(turns.input_tokens + turns.output_tokens + turns.cache_creation_tokens), 0),
        CAST(round(coalesce(sum(turns.cost_usd), 0) * 1000000000) AS INTEGER)
      FROM turns JOIN sessions ON sessions.position = turns.session GROUP BY 1, 2;
    """

  private static let network = """
    ALTER TABLE api_keys ADD COLUMN network TEXT CHECK (network IN ('open', 'model-only'));
    ALTER TABLE sessions ADD COLUMN network TEXT CHECK (network IN ('open', 'model-only'));
    """

  /// `beside_…` is what of the amounts agents took from the model beside the CLI. `gateway_accounts` is what has passed
  /// the model's gateway less what turns were charged with; its sessions are no references, since what was taken is
  /// charged also when they are deleted. `gateway_log` says how far the gateway's log was read.
  private static let gateway = """
    ALTER TABLE usage ADD COLUMN beside_tokens INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE usage ADD COLUMN beside_cost INTEGER NOT NULL DEFAULT 0;

    CREATE TABLE gateway_accounts (
      session BLOB PRIMARY KEY CHECK (length(session) = 16),
      tokens INTEGER NOT NULL,
      cost INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE gateway_log (
      id INTEGER PRIMARY KEY CHECK (id = 1),
      mark TEXT NOT NULL
    ) STRICT;
    """

  /// Bytes that a session takes: its files as they were measured last (NULL: never), and the payloads of its events. Apart
  /// from `sessions`, whose rows may be long, since it is written with each event.
  ///
  /// What was logged by earlier versions doesn't count: to add it up could take longer than an upgrade may.
  private static let room = """
    CREATE TABLE room (
      session INTEGER PRIMARY KEY REFERENCES sessions (position) ON DELETE CASCADE,
      files INTEGER,
      log INTEGER NOT NULL
    ) STRICT;
    INSERT INTO room (session, files, log) SELECT position, NULL, 0 FROM sessions;
    """
}
