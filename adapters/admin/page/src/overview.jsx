import { useEffect, useRef, useState } from "preact/hooks";
import { ask } from "./api.js";
import { Chart } from "./chart.jsx";
import { Live, figuresOf } from "./live.jsx";

const POLL_MS = 1000;
const KEPT = 300;

/** Asks again `POLL_MS` after each answer, never twice at once. */
function usePolled(path) {
  const [state, setState] = useState({ data: null, error: null, at: null });
  useEffect(() => {
    let stopped = false;
    let timer;
    const poll = async () => {
      try {
        const data = await ask(path);
        if (!stopped) setState({ data: { ...data, at: Date.now() }, error: null, at: Date.now() });
      } catch (error) {
        if (!stopped) setState((old) => ({ ...old, error: error.message }));
      }
      if (!stopped) timer = setTimeout(poll, POLL_MS);
    };
    poll();
    return () => {
      stopped = true;
      clearTimeout(timer);
    };
  }, [path]);
  return state;
}

export function Overview() {
  const overview = usePolled("overview");
  const metrics = usePolled("metrics");
  const history = useRef({ last: null, before: null, points: [] });
  const kept = history.current;
  if (metrics.data && metrics.data !== kept.last) {
    kept.before = kept.last;
    kept.last = metrics.data;
    kept.points = [...kept.points, figuresOf(kept.before, kept.last)].slice(-KEPT);
  }
  return (
    <main>
      <header>
        <h1>Leadline</h1>
        {overview.data && (
          <span class="soft">
            cluster {overview.data.cluster} as node {overview.data.asked} sees it
          </span>
        )}
      </header>
      <Verdict overview={overview} />
      {overview.data && <Nodes overview={overview.data} />}
      {overview.data && <Shards overview={overview.data} />}
      {kept.last && <Live before={kept.before} after={kept.last} error={metrics.error} />}
      <Chart points={kept.points} />
    </main>
  );
}

/** Is the cluster well, and how many nodes may it lose? */
function Verdict({ overview: { data, error, at } }) {
  if (error) {
    return (
      <section id="verdict" data-state="unknown" class="card verdict bad">
        Not known: {error}
        {at && <p class="soft">What stands below is {Math.round((Date.now() - at) / 1000)} s old.</p>}
      </section>
    );
  }
  if (!data) return <section id="verdict" data-state="asking" class="card verdict warn">Asking…</section>;
  const silent = data.members.filter((member) => !member.readiness);
  const leaderless = data.groups.filter((group) => group.leader === null);
  const [state, tone, text] = !data.has_quorum
    ? ["no-quorum", "bad", `${leaderless.length} of ${data.groups.length} groups have no leader with a quorum`]
    : silent.length > 0
      ? ["degraded", "warn", `Serving, but ${names(silent)} did not answer`]
      : ["well", "", "The cluster is well"];
  return (
    <section id="verdict" data-state={state} class={`card verdict ${tone}`}>
      {text}
      <p id="may-lose">
        {data.has_quorum
          ? `It may lose ${data.may_lose} more node${data.may_lose === 1 ? "" : "s"} and go on.`
          : "Writes to those groups wait for a quorum, each no longer than its own deadline."}
      </p>
      {data.unknown.map((sentence) => (
        <p class="soft" key={sentence}>{sentence}</p>
      ))}
    </section>
  );
}

function names(members) {
  return members.map((member) => `node ${member.node}`).join(", ");
}

function Nodes({ overview }) {
  return (
    <section class="card">
      <h2>Nodes</h2>
      <table id="nodes">
        <thead>
          <tr>
            <th>node</th><th>state</th><th>answers</th><th class="number">leads</th>
            <th class="number">lag</th><th class="number">up</th><th>version</th><th>redis</th>
          </tr>
        </thead>
        <tbody>
          {overview.members.map((member) => (
            <tr key={member.node} data-node={member.node} data-answers={String(!!member.readiness)}>
              <td>{member.node}</td>
              <td>{member.state}</td>
              <td class={!member.readiness ? "bad" : member.readiness.ready ? "good" : "warn"}>
                {!member.readiness ? "no answer" : member.readiness.ready ? "ready" : member.readiness.reasons.join("; ")}
              </td>
              <td class="number">{member.leads}</td>
              <td class="number">{member.readiness ? member.readiness.lag : "?"}</td>
              <td class="number">{member.uptime_seconds === null ? "?" : span(member.uptime_seconds)}</td>
              <td>{member.version ?? "?"}</td>
              <td>{member.addresses.redis}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </section>
  );
}

function span(seconds) {
  if (seconds < 120) return `${seconds} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return `${Math.round(seconds / 3600)} h`;
}

/** Shards × nodes: who leads, in which term, and how far each replica is behind. */
function Shards({ overview }) {
  return (
    <section class="card">
      <h2>Shards</h2>
      <table id="shards">
        <thead>
          <tr>
            <th>group</th><th>slots</th><th>leader</th><th class="number">term</th>
            <th class="number">commit index</th>
            {overview.members.map((member) => <th class="number" key={member.node}>node {member.node}</th>)}
          </tr>
        </thead>
        <tbody>
          {overview.groups.map((group) => (
            <tr key={group.group} data-group={group.group}>
              <td>{group.group === 0 ? "meta" : group.group}</td>
              <td>{group.slots ? `${group.slots[0]}–${group.slots[1]}` : ""}</td>
              <td class={group.leader === null ? "bad" : ""}>
                {group.leader === null ? "none" : `node ${group.leader}`}
              </td>
              <td class="number">{group.term}</td>
              <td class="number">{group.commit_index}</td>
              {overview.members.map((member) => (
                <Replica key={member.node} replica={group.replicas.find((r) => r.node === member.node)} />
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </section>
  );
}

function Replica({ replica }) {
  if (!replica) return <td class="number soft">–</td>;
  if (!replica.status) return <td class="number bad">no answer</td>;
  const part = replica.leading ? "leader" : replica.role;
  return (
    <td class={`number ${replica.leading ? "leader" : ""}`}>
      {part}{replica.lag ? `, ${replica.lag} behind` : ""}
    </td>
  );
}
