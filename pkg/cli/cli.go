// Package cli is the operator's command, slash32: what the agent sees, what is
// wrong with a VM's annotation or with the host, and what would be set up for a VM. It
// changes nothing.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/slash32/slash32/pkg/config"
	"github.com/slash32/slash32/pkg/control"
	"github.com/slash32/slash32/pkg/intent"
	"github.com/slash32/slash32/pkg/plan"
	"github.com/slash32/slash32/pkg/problem"
	"github.com/slash32/slash32/pkg/spool"
	"github.com/slash32/slash32/pkg/version"
)

// Exit codes. Scripts rely on them.
const (
	ExitOK       = 0
	ExitError    = 1 // a problem was found, or something failed
	ExitUsage    = 2 // the command line is wrong
	ExitNotFound = 3 // no such VM
	ExitNotReady = 4 // the agent does not run or has not looked yet
)

// Env is all that the command has of the world.
type Env struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Dirs           spool.Dirs
	Now            func() time.Time
	// Call asks the agent.
	Call func(context.Context, control.Request) (control.Reply, error)
	// Facts reads what planning needs of the host and of the named interfaces.
	Facts func(context.Context, ...string) (plan.Facts, error)
	// Listeners are the ports that programs of the host listen on.
	Listeners func(context.Context) ([]intent.Listener, error)
	// Doctor examines what else of the host keeps guests offline.
	Doctor func(context.Context, control.Status, config.Config) ([]Finding, error)
}

// Run runs one command line, without the program's name, and returns the exit
// code. Results go to Stdout; what went wrong goes to Stderr on one line.
func Run(ctx context.Context, e Env, args []string) int {
	c := &command{Env: e}
	root := c.root()
	root.SetArgs(args)
	root.SetIn(e.Stdin)
	root.SetOut(e.Stdout)
	root.SetErr(e.Stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return ExitOK
	}
	code := ExitUsage // what cobra itself finds wrong
	var f *failure
	if errors.As(err, &f) {
		code = f.code
		if f.err == nil {
			return code
		}
	} else {
		err = fmt.Errorf("%w. Fix: see slash32 --help", err)
	}
	fmt.Fprintln(e.Stderr, "slash32: "+oneLine(err.Error()))
	return code
}

// failure is an error with the exit code that it asks for; without err the
// output has said it all.
type failure struct {
	code int
	err  error
}

func (f *failure) Error() string {
	if f.err == nil {
		return ""
	}
	return f.err.Error()
}

func (f *failure) Unwrap() error { return f.err }

func fail(code int, format string, args ...any) error {
	return &failure{code, fmt.Errorf(format, args...)}
}

// command is one run.
type command struct {
	Env
	json bool
}

func (c *command) root() *cobra.Command {
	status := c.run(c.status)
	root := &cobra.Command{
		Use:   "slash32",
		Short: "What slash32 does for the VMs of this host",
		Long: `slash32 shows what the agent does for the VMs of this host, checks the
annotations of VMs, shows what would be set up for one, and looks for what else on
the host keeps VMs offline. It changes nothing.

Without a command it is "slash32 status".`,
		Args:          cobra.NoArgs,
		RunE:          status,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.PersistentFlags().BoolVarP(&c.json, "json", "j", false, "print JSON")
	add := func(use, short, long string, args cobra.PositionalArgs, names bool, f func(ctx context.Context, args []string) error) {
		cmd := &cobra.Command{Use: use, Short: short, Long: long, Args: args, RunE: c.run(f), ValidArgsFunction: cobra.NoFileCompletions}
		if names {
			cmd.ValidArgsFunction = c.complete
		}
		root.AddCommand(cmd)
	}
	add("status", "All running, annotated VMs",
		"status lists the running, annotated VMs as the agent sees them, one line a NIC, and what is wrong.",
		cobra.NoArgs, false, c.status)
	add("show VM", "One VM with its counters and kernel objects",
		"show prints all that the agent knows of one VM: a name, UUID, MAC address, IP address, bridge or tap says which.",
		cobra.ExactArgs(1), true, c.show)
	add("check [VM | FILE.xml | -]", "Problems of an annotation, or of the configuration",
		`check reads a domain's XML (of a running VM, from a file, or from standard
input) and prints each problem of its annotation with its line, or "ok". It looks
for addresses and bridges that a running VM has. Without an argument it checks
the configuration, domains.d included. The exit code is 1 when a start would be
refused. With a file or "-" no agent is needed.`,
		cobra.MaximumNArgs(1), true, c.check)
	add("plan VM | FILE.xml | -", "What would be set up for a VM",
		`plan prints the kernel objects that slash32 makes for a VM, like ip and nft print
them; with --json also what its responder is told. It changes nothing.`,
		cobra.ExactArgs(1), true, c.plan)
	add("doctor", "What else on this host keeps guests offline",
		`doctor looks at what is not slash32's: the forward chains of Docker, ufw,
firewalld and others, systemd-networkd, NetworkManager, and the kernel's settings.
Each line says who, what, why and how to fix it. The exit code is 1 when something
keeps guests offline. It changes nothing and needs root, but no agent.`,
		cobra.NoArgs, false, c.doctor)
	add("sync", "Have the agent look at once",
		`sync has the agent compare everything and put back what is missing, and returns
when it has. It is what a unit runs that has just flushed the nftables ruleset.`,
		cobra.NoArgs, false, c.sync)
	add("metrics", "Counters for Prometheus",
		`metrics prints the counters of all VMs in the text format of Prometheus: what was
forwarded, what the guards dropped, what the responders saw.`,
		cobra.NoArgs, false, c.metrics)
	add("version", "The version of this program",
		"version prints the version of this program.",
		cobra.NoArgs, false, c.version)
	return root
}

func (c *command) run(f func(ctx context.Context, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error { return f(cmd.Context(), args) }
}

// complete offers the names of the VMs that run; files go without saying.
func (c *command) complete(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), time.Second)
	defer cancel()
	directive := cobra.ShellCompDirectiveDefault
	if cmd.Name() == "show" {
		directive = cobra.ShellCompDirectiveNoFileComp
	}
	reply, err := c.Call(ctx, control.Request{Op: "status"})
	if err != nil || reply.Status == nil {
		return nil, directive
	}
	var names []string
	for _, v := range reply.Status.VMs {
		names = append(names, oneLine(v.Name))
	}
	return names, directive
}

// ask asks the agent; errors say what to do.
func (c *command) ask(ctx context.Context, r control.Request) (control.Reply, error) {
	reply, err := c.Call(ctx, r)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return reply, fail(ExitError, "%w. Fix: use sudo", err)
	case errors.Is(err, fs.ErrNotExist):
		return reply, fail(ExitNotReady, "the agent does not run (nothing answers at %s). Fix: systemctl start slash32d", c.Dirs.Socket())
	case err != nil:
		return reply, fail(ExitNotReady, "%w. Fix: see systemctl status slash32d", err)
	case reply.Error != "":
		code := reply.Code
		if code == 0 {
			code = ExitError
		}
		return reply, fail(code, "%s", reply.Error)
	}
	return reply, nil
}

func (c *command) version(context.Context, []string) error {
	if c.json {
		return c.printJSON(map[string]string{"version": version.Version})
	}
	return c.print("slash32 " + version.Version + "\n")
}

func (c *command) print(s string) error {
	if _, err := io.WriteString(c.Stdout, s); err != nil {
		return fail(ExitError, "write the output: %w", err)
	}
	return nil
}

func (c *command) printJSON(v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fail(ExitError, "encode the output: %w", err)
	}
	return c.print(string(b) + "\n")
}

// oneLine escapes control characters, as problem does: names and texts come
// from whoever may define a domain.
func oneLine(s string) string {
	return strings.TrimPrefix(problem.Problem{What: s}.String(), " ")
}
