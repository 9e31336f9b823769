import { useEffect, useRef } from "preact/hooks";
import uPlot from "uplot";

/** Operations per second and 99th percentile over the last minutes. */
export function Chart({ points }) {
  const element = useRef(null);
  const plot = useRef(null);
  const data = [
    points.map((point) => point.at / 1000),
    points.map((point) => point.operations),
    points.map((point) => (point.p99 === null ? null : point.p99 * 1000)),
  ];
  useEffect(() => {
    const ink = getComputedStyle(document.documentElement).getPropertyValue("--soft");
    const axis = { stroke: ink, grid: { stroke: "#8883", width: 1 } };
    plot.current = new uPlot(
      {
        width: element.current.clientWidth,
        height: 220,
        series: [
          {},
          { label: "operations/s", stroke: "#2a7fb8", width: 2, scale: "ops" },
          { label: "p99 ms", stroke: "#c98a1b", width: 2, scale: "ms" },
        ],
        scales: { ops: { range: (_, __, max) => [0, Math.max(10, max * 1.1)] }, ms: { range: (_, __, max) => [0, Math.max(1, max * 1.1)] } },
        axes: [axis, { ...axis, scale: "ops", size: 70 }, { ...axis, scale: "ms", side: 1, grid: { show: false } }],
      },
      data,
      element.current,
    );
    const resized = new ResizeObserver(() =>
      plot.current.setSize({ width: element.current.clientWidth, height: 220 }),
    );
    resized.observe(element.current);
    return () => {
      resized.disconnect();
      plot.current.destroy();
    };
  }, []);
  useEffect(() => plot.current?.setData(data), [points]);
  return (
    <section class="card">
      <h2>This node, the last minutes</h2>
      <div ref={element} />
    </section>
  );
}
