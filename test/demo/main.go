// Command demo shows slash32 at work in one lab: real libvirtd, hook, agent,
// responders and guests, each step with its time. It needs root, the packages
// that lab.Missing names and the binaries; it leaves nothing on the machine but
// its report. "make demo" runs it.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/slash32/slash32/test/lab"
)

func main() {
	bin := flag.String("bin", "bin", "the folder of the binaries")
	out := flag.String("out", "build/demo", "the folder for report.json and log")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *bin, *out); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		stop()
		os.Exit(1)
	}
}

// The demo takes some 20 s on an idle machine; these bound it on a busy one.
const (
	limit     = 3 * time.Minute
	stepLimit = time.Minute
)

func run(ctx context.Context, bin, out string) (err error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if bin, err = filepath.Abs(bin); err != nil {
		return fmt.Errorf("find the binaries: %w", err)
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return fmt.Errorf("make the folder for the report: %w", err)
	}
	log, err := os.Create(filepath.Join(out, "log"))
	if err != nil {
		return fmt.Errorf("make the log: %w", err)
	}
	defer log.Close()
	d := &demo{bin: bin, start: time.Now(), out: io.MultiWriter(os.Stdout, log)}
	err = d.play(ctx)
	if d.lab != nil {
		for _, l := range d.lab.Logs() {
			fmt.Fprintf(log, "\n== %s\n%s", l.Name, l.Text)
		}
		if closing := d.lab.Close(); err == nil {
			err = closing
		}
	}
	report, marshalling := json.MarshalIndent(d.steps, "", "  ")
	if marshalling == nil {
		marshalling = os.WriteFile(filepath.Join(out, "report.json"), append(report, '\n'), 0o644)
	}
	if err == nil {
		err = marshalling
	}
	return err
}

// demo is one run.
type demo struct {
	bin   string
	lab   *lab.Lab
	start time.Time
	out   io.Writer
	steps []step
}

// step is one line of the report.
type step struct {
	Name   string `json:"name"`
	MS     int64  `json:"ms"` // since the start of the demo, when the step was done
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
}

// step does one step and prints its time, name and detail. After a failure the
// demo does not go on.
func (d *demo) step(name string, do func() (detail string, err error)) error {
	detail, err := do()
	ok := "ok  "
	if err != nil {
		ok, detail = "FAIL", err.Error()
	}
	s := step{Name: name, MS: time.Since(d.start).Milliseconds(), OK: err == nil, Detail: strings.TrimSpace(detail)}
	d.steps = append(d.steps, s)
	fmt.Fprintf(d.out, "%6d ms  %s  %s\n", s.MS, ok, s.Name)
	for line := range strings.Lines(s.Detail) {
		fmt.Fprintf(d.out, "                 %s\n", strings.TrimRight(line, "\n"))
	}
	if err != nil {
		return fmt.Errorf("step %q failed after %d ms; the logs are in the file log", s.Name, s.MS)
	}
	return nil
}
