"""`lectern runs`: creates, shows and controls the runs of a control plane, over REST.

The table below has the commands in the order in which `lectern runs --help` lists them.
"""

from lectern.commands.runs.creating import create, fork
from lectern.commands.runs.keeping import adopt, delete, prune
from lectern.commands.runs.showing import history, list_runs, samples, show
from lectern.commands.runs.steering import resume, set_labels, stop
from lectern.commands.runs.watching import logs, watch
from lectern.options import command_group

app = command_group("Create, watch, stop, resume and delete runs.")

app.command(epilog="Example: lectern runs create run.yaml --watch")(create)
app.command("list", epilog="Example: lectern runs list --json")(list_runs)
app.command(epilog="Example: lectern runs show coder-7t2k9q --json")(show)
app.command(epilog="Example: lectern runs watch")(watch)
app.command(epilog="Example: lectern runs logs coder-7t2k9q --tail 50")(logs)
app.command(epilog="Example: lectern runs history coder-7t2k9q")(history)
app.command("set", epilog="Example: lectern runs set coder-7t2k9q --priority 5 --tag baseline")(
    set_labels
)
app.command(epilog="Example: lectern runs samples coder-7t2k9q")(samples)
app.command(epilog="Example: lectern runs stop coder-7t2k9q --wait")(stop)
app.command(epilog="Example: lectern runs resume coder-7t2k9q --set schedule.steps=2000")(resume)
app.command(epilog="Example: lectern runs fork coder-7t2k9q --set optimizer.learning_rate=0.0001")(
    fork
)
app.command(epilog="Example: lectern runs delete coder-7t2k9q --yes")(delete)
app.command(epilog="Example: lectern runs prune --state failed --older-than 30d --yes")(prune)
app.command(epilog="Example: lectern runs adopt --all")(adopt)
