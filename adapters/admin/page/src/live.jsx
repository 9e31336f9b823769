import { quantile, rate, ratesBy, total } from "./rates.js";

const DOORS = [
  {
    name: "Redis",
    requests: "leadline_redis_commands_total",
    seconds: "leadline_redis_command_duration_seconds",
    gone: "leadline_redis_client_gone_total",
  },
  {
    name: "HTTP",
    requests: "leadline_http_requests_total",
    seconds: "leadline_http_request_duration_seconds",
    gone: "leadline_http_client_gone_total",
  },
];

const ERRORS = "leadline_redis_errors_total";
const FSYNC = "leadline_raft_log_sync_seconds";

/** The two figures of the chart. */
export function figuresOf(before, after) {
  return {
    at: after.at,
    operations: rate(before, after, DOORS[0].requests) ?? 0,
    p99: quantile(before, after, DOORS[0].seconds, 0.99),
  };
}

function count(value) {
  if (value === null) return "–";
  return value >= 100 ? Math.round(value).toLocaleString("en") : value.toFixed(value >= 10 ? 1 : 2);
}

function time(seconds) {
  if (seconds === null) return "–";
  if (seconds < 0.001) return `${Math.round(seconds * 1e6)} µs`;
  return `${(seconds * 1000).toFixed(seconds < 0.1 ? 1 : 0)} ms`;
}

/** This node now: doors, errors by class, and everything that can pile up. */
export function Live({ before, after, error }) {
  const errors = ratesBy(before, after, ERRORS, "class");
  return (
    <div class="grid">
      <section class="card">
        <h2>Doors of this node {error && <span class="bad">({error})</span>}</h2>
        <table id="doors">
          <thead>
            <tr>
              <th>door</th><th class="number">requests/s</th><th class="number">p50</th>
              <th class="number">p99</th><th class="number">clients gone</th>
            </tr>
          </thead>
          <tbody>
            {DOORS.map((door) => (
              <tr key={door.name} data-door={door.name}>
                <td>{door.name}</td>
                <td class="number">{count(rate(before, after, door.requests))}</td>
                <td class="number">{time(quantile(before, after, door.seconds, 0.5))}</td>
                <td class="number">{time(quantile(before, after, door.seconds, 0.99))}</td>
                <td class="number">{count(total(after, door.gone))}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </section>
      <section class="card">
        <h2>What can pile up</h2>
        <div class="figures" id="queues">
          <Figure name="pending verifications" value={count(total(after, "leadline_raft_group_pending_verifications"))} />
          <Figure name="pending proposals" value={count(total(after, "leadline_raft_group_pending_proposals"))} />
          <Figure name="forwards pending" value={count(total(after, "leadline_coordinator_forwards_pending"))} />
          <Figure name="waiting for a leader" value={count(total(after, "leadline_coordinator_parked_requests"))} />
          <Figure name="log queue" value={count(total(after, "leadline_raft_log_queue_depth"))} />
          <Figure name="blocked clients" value={count(total(after, "leadline_redis_blocked_clients"))} />
          <Figure name="log fsync p50" value={time(quantile(before, after, FSYNC, 0.5))} />
          <Figure name="log fsync p99" value={time(quantile(before, after, FSYNC, 0.99))} />
        </div>
      </section>
      <section class="card">
        <h2>Errors by class</h2>
        <table id="errors">
          <tbody>
            {errors.length === 0 && <tr><td class="soft">none in the last second</td></tr>}
            {errors.map(([name, perSecond]) => (
              <tr key={name}>
                <td>{name}</td>
                <td class="number bad">{count(perSecond)}/s</td>
              </tr>
            ))}
          </tbody>
        </table>
      </section>
    </div>
  );
}

function Figure({ name, value }) {
  return (
    <div class="figure" data-figure={name}>
      <b>{value}</b>
      <span class="soft">{name}</span>
    </div>
  );
}
