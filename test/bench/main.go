// Command bench measures the responder, the hook and the host's network beside
// their peers, and network boot, and prints the tables; it works in namespaces of its own and
// writes the figures as JSON too. Timing belongs here and in no test.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

type options struct {
	bin    string // folder with our binaries
	out    string // folder for the figures
	rounds int
	vms    int
	only   string
}

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.SetOutput(stderr)
	var o options
	fs.StringVar(&o.bin, "bin", "bin", "folder with the binaries")
	fs.StringVar(&o.out, "out", "build/bench", "folder for the figures")
	fs.IntVar(&o.rounds, "rounds", 5, "rounds, interleaved; medians are printed")
	fs.IntVar(&o.vms, "vms", 50, "responders up at once for the memory figures")
	fs.StringVar(&o.only, "only", "", "responder, hook, network or netboot; all by default")
	inside := fs.String("inside", "", "the table to make, already in the namespaces: responder or network")
	if err := fs.Parse(args); err != nil {
		return 2
	}
	for _, p := range []*string{&o.bin, &o.out} {
		abs, err := filepath.Abs(*p)
		if err != nil {
			fmt.Fprintln(stderr, "bench:", err)
			return 1
		}
		*p = abs
	}
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		fmt.Fprintln(stderr, "bench:", err)
		return 1
	}
	ctx := context.Background()
	var err error
	switch {
	case *inside == "network":
		err = networkTables(ctx, o, stdout)
	case *inside != "":
		err = responderTables(ctx, o, stdout)
	default:
		if o.only == "" || o.only == "responder" {
			err = reexec("responder", args, stdout, stderr)
		}
		if o.only == "" || o.only == "hook" {
			err = errors.Join(err, hookTable(ctx, o, stdout))
		}
		if o.only == "" || o.only == "network" {
			err = errors.Join(err, reexec("network", args, stdout, stderr))
		}
		if o.only == "" || o.only == "netboot" {
			err = errors.Join(err, netbootTable(ctx, o, stdout))
		}
	}
	if err != nil {
		fmt.Fprintln(stderr, "bench:", err)
		return 1
	}
	return 0
}

// reexec runs this program again in new mount, network and PID namespaces:
// whatever happens to it, nothing remains.
func reexec(table string, args []string, stdout, stderr io.Writer) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own executable: %w", err)
	}
	cmd := exec.Command("unshare", append([]string{"--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private",
		"sh", "-c", `mount -t tmpfs tmpfs /run && exec "$@"`, "sh", self, "-inside", table}, args...)...)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("measure the %s: %w", table, err)
	}
	return nil
}

// figure is one measured value.
type figure struct {
	Table  string  `json:"table"`
	What   string  `json:"what"`
	Who    string  `json:"who"`
	Value  float64 `json:"value"`
	Unit   string  `json:"unit"`
	Rounds int     `json:"rounds"`
}

func writeJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encode figures: %w", err)
	}
	if err := os.WriteFile(path, append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("write figures: %w", err)
	}
	return nil
}
