package lab

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
)

// StartAgent starts slash32d on the hypervisor and waits until "slash32
// status" answers. Its output is appended to its log.
func (l *Lab) StartAgent(ctx context.Context, args ...string) error {
	if l.agent != nil {
		return errors.New("the agent runs already")
	}
	p, err := l.HV.Start(agentLog, append([]string{filepath.Join(l.opts.BinDir, "slash32d")}, args...)...)
	if err != nil {
		return err
	}
	l.agent = p
	return Wait(ctx, func() error {
		if pid, err := p.PID(); err != nil || pid == 0 {
			return fmt.Errorf("slash32d has ended: %s", tail(l.log(agentLog), 5))
		}
		_, err := l.Slash32(ctx, "status")
		return err
	})
}

// StopAgent asks the agent to end (SIGTERM) and waits for it.
func (l *Lab) StopAgent() error { return l.endAgent(syscall.SIGTERM) }

// KillAgent kills the agent (-9).
func (l *Lab) KillAgent() error { return l.endAgent(syscall.SIGKILL) }

func (l *Lab) endAgent(sig syscall.Signal) error {
	if l.agent == nil {
		return errors.New("the agent does not run")
	}
	p := l.agent
	l.agent = nil
	if err := p.Signal(sig); err != nil {
		return fmt.Errorf("end the agent: %w", err)
	}
	return nil
}

// Slash32 runs the operator's command on the hypervisor.
func (l *Lab) Slash32(ctx context.Context, args ...string) (string, error) {
	return l.HV.Exec(ctx, append([]string{filepath.Join(l.opts.BinDir, "slash32")}, args...)...)
}

// Log is one of a lab's logs.
type Log struct{ Name, Text string }

// Logs are the agent's, libvirtd's, QEMU's and the guests' logs, and those
// below /run/slash32, sorted by name.
func (l *Lab) Logs() []Log {
	var paths []string
	for _, pattern := range []string{
		agentLog, libvirtdLog, "/var/log/libvirt/qemu/*.log", labDir + "/console/*.log",
		"/run/slash32/*.log", "/run/slash32/vm/*/*.log", "/run/lab/init.log",
	} {
		root := l.HV.Path("/")
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			continue // the patterns above are well-formed
		}
		for _, f := range found {
			paths = append(paths, strings.TrimPrefix(f, root))
		}
	}
	sort.Strings(paths)
	logs := make([]Log, 0, len(paths))
	for _, p := range paths {
		logs = append(logs, Log{p, l.log(p)})
	}
	return logs
}

func (l *Lab) log(path string) string {
	s, err := l.HV.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return s
}

// Tails are the last lines of each log, for a test's failure.
func (l *Lab) Tails(lines int) string {
	var b strings.Builder
	for _, log := range l.Logs() {
		fmt.Fprintf(&b, "== %s\n%s\n", log.Name, tail(log.Text, lines))
	}
	return b.String()
}

func tail(s string, n int) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
