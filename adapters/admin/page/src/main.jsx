import { render } from "preact";
import "uplot/dist/uPlot.min.css";
import "./style.css";
import { Overview } from "./overview.jsx";

render(<Overview />, document.getElementById("app"));
