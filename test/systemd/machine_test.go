package systemd_test

import (
	"bufio"
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/slash32/slash32/test/lab"
)

//go:embed machine.sh
var machineScript string

// machine is a booted systemd. It is gone with the test's process at the latest.
type machine struct {
	script *exec.Cmd
	stdin  io.Closer
	init   int // its PID 1, as seen from here
	root   string

	mu  sync.Mutex
	log bytes.Buffer // what the script and the boot have said
}

// bootLimit is for one boot; now and then one hangs for no known reason.
const (
	bootLimit = 90 * time.Second
	bootTries = 2
)

// boot boots a machine that lasts as long as the test.
func boot(t *testing.T) *machine {
	t.Helper()
	for try := 1; ; try++ {
		m, err := start(t)
		if err == nil {
			ctx, cancel := context.WithTimeout(context.Background(), bootLimit)
			err = m.booted(ctx)
			cancel()
		}
		if err == nil {
			t.Cleanup(m.end)
			return m
		}
		said := ""
		if m != nil {
			m.end()
			said = m.said()
		}
		if try == bootTries {
			t.Fatalf("boot: %v\n%s", err, said)
		}
		t.Logf("boot: %v; another try\n%s", err, said)
	}
}

// start runs the script and writes the files that the machine finds.
func start(t *testing.T) (*machine, error) {
	t.Helper()
	source, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		return nil, err
	}
	m := &machine{script: exec.Command("bash", "-c", machineScript, "machine.sh", source)}
	m.script.SysProcAttr = &syscall.SysProcAttr{
		Setsid:     true,
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS,
	}
	stdin, err := m.script.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := m.script.StdoutPipe()
	if err != nil {
		return nil, err
	}
	m.script.Stderr = m.script.Stdout
	if err := m.script.Start(); err != nil {
		return nil, err
	}
	m.stdin = stdin
	out := bufio.NewReader(stdout)
	line, err := out.ReadString('\n')
	go m.collect(out)
	if err != nil || line != "ready\n" {
		return m, fmt.Errorf("set up the machine: %q (%w)", line, err)
	}
	m.root = fmt.Sprintf("/proc/%d/root/mnt/root", m.script.Process.Pid)
	conf, err := os.ReadFile(filepath.Join("..", "lab", "host", "qemu.conf"))
	if err == nil {
		err = os.WriteFile(m.root+"/etc/libvirt/qemu.conf", conf, 0o644)
	}
	if err := errors.Join(err, lab.GuestFiles(m.root)); err != nil {
		return m, err
	}
	_, err = io.WriteString(stdin, "go\n")
	return m, err
}

func (m *machine) collect(r io.Reader) {
	b := make([]byte, 4096)
	for {
		n, err := r.Read(b)
		m.mu.Lock()
		m.log.Write(b[:n])
		m.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (m *machine) said() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.log.String()
}

func (m *machine) end() {
	_ = m.script.Process.Kill()
	_ = m.stdin.Close()
	_ = m.script.Wait() // "signal: killed", and all of its PID namespace with it
}

// booted waits until systemd has done its first work.
func (m *machine) booted(ctx context.Context) error {
	return lab.Wait(ctx, func() error {
		if m.init == 0 {
			pid, err := grandchild(m.script.Process.Pid, "systemd-nspawn")
			if err != nil {
				return err
			}
			m.init = pid
		}
		out, err := m.exec(ctx, "systemctl", "is-system-running")
		if s := strings.TrimSpace(out); s == "running" || s == "degraded" {
			return nil
		}
		return fmt.Errorf("the system is %s (%w)", strings.TrimSpace(out), err)
	})
}

// grandchild is the first child of the child of that name.
func grandchild(pid int, name string) (int, error) {
	for _, c := range children(pid) {
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", c))
		if !strings.HasPrefix(name, strings.TrimSpace(string(comm))) {
			continue
		}
		for _, g := range children(c) {
			// nspawn has helpers; the one with a PID namespace of its own is PID 1.
			status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", g))
			if strings.TrimSpace(string(status)) == "systemd" {
				return g, nil
			}
		}
	}
	return 0, errors.New("systemd does not run yet")
}

func children(pid int) []int {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	var pids []int
	for _, f := range strings.Fields(string(b)) {
		if n, err := strconv.Atoi(f); err == nil {
			pids = append(pids, n)
		}
	}
	return pids
}

func (m *machine) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"-t", strconv.Itoa(m.init), "-a", "--"}, args...)...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "HOME=/root"}
	return cmd
}

// exec runs a command in the machine and returns what it prints on both outputs.
func (m *machine) exec(ctx context.Context, args ...string) (string, error) {
	out, err := m.command(ctx, args...).CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s: %w", strings.Join(args, " "), err)
	}
	return string(out), nil
}

// do is exec that must succeed.
func (m *machine) do(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	out, err := m.exec(ctx, args...)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return out
}

// await repeats check until it has no error.
func (m *machine) await(t *testing.T, what string, check func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := lab.Wait(ctx, check); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}
