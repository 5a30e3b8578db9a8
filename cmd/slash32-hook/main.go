// Command slash32-hook is libvirt's qemu hook. It prints nothing on standard
// output (libvirt would take it for XML) and exits non-zero only to refuse a
// start.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/slash32/slash32/pkg/control"
	"github.com/slash32/slash32/pkg/hook"
	"github.com/slash32/slash32/pkg/kernel"
	"github.com/slash32/slash32/pkg/launch"
	"github.com/slash32/slash32/pkg/probe"
	"github.com/slash32/slash32/pkg/problem"
	"github.com/slash32/slash32/pkg/spool"
	"github.com/slash32/slash32/pkg/version"
)

// memoryLimit is from when on garbage is collected at all, in bytes.
const memoryLimit = 64 << 20

// timeout bounds an operation as a whole: libvirt itself waits without end.
const timeout = 30 * time.Second

func main() {
	if len(os.Args) == 2 && os.Args[1] == "--version" {
		fmt.Fprintln(os.Stderr, "slash32-hook", version.Version)
		return
	}
	// It lives for milliseconds: collecting is for a run that gets out of hand.
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(memoryLimit)
	log := logrus.New()
	log.SetOutput(os.Stderr)
	log.SetFormatter(&logrus.TextFormatter{DisableTimestamp: true, DisableColors: true})
	dirs := spool.DirsFromEnv(os.Getenv)
	h := &hook.Hook{
		Dirs:   dirs,
		Kernel: func() (hook.Kernel, error) { return kernel.New(log) },
		Launcher: func(mode string) hook.Launcher {
			return launch.New(mode, responderPath(), log)
		},
		Poke:  func(vm string) bool { return control.Poke(dirs.Socket(), vm) == nil },
		Probe: probe.Run,
		Now:   time.Now,
		Log:   log,
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	err := h.Run(ctx, os.Args[1:], os.Stdin)
	cancel()
	if err != nil {
		fmt.Fprintln(os.Stderr, "slash32: "+line(err))
		os.Exit(1)
	}
}

// line makes an error one line.
func line(err error) string {
	var ps problem.List
	if errors.As(err, &ps) {
		return ps.Error()
	}
	return strings.ReplaceAll(err.Error(), "\n", "; ")
}

// responderPath is SLASH32_RESPONDER, else the program beside this one.
func responderPath() string {
	if p := os.Getenv("SLASH32_RESPONDER"); p != "" {
		return p
	}
	self, err := os.Executable()
	if err != nil {
		return "slash32-responder"
	}
	if real, err := filepath.EvalSymlinks(self); err == nil {
		self = real
	}
	return filepath.Join(filepath.Dir(self), "slash32-responder")
}
