package clients

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// space is a set of namespaces. Its first process dies with the test, and with
// it the kernel ends all others in there and removes the interfaces.
type space struct {
	t   *testing.T
	pid int
}

func newSpace(t *testing.T) *space {
	t.Helper()
	// It ends when the pipe closes. A signal at its parent's death would come with
	// the end of the thread that started it, which another test may bring about.
	cmd := exec.Command("cat")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS,
	}
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatalf("make a pipe: %v", err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("make namespaces: %v. Fix: run the tests as root", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return &space{t: t, pid: cmd.Process.Pid}
}

func (s *space) command(words ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"-t", strconv.Itoa(s.pid), "-n", "-m", "-p", "-u", "--"}, words...)...)
}

// sh runs a script and returns what it printed.
func (s *space) sh(script string) (string, error) {
	out, err := s.command("sh", "-e", "-c", script).CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s: %w: %s", script, err, out)
	}
	return string(out), nil
}

func (s *space) must(script string) string {
	s.t.Helper()
	out, err := s.sh(script)
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

// root names the file system of the space within /proc.
func (s *space) root() string { return strconv.Itoa(s.pid) + "/root" }

// process is a program that runs in a space.
type process struct {
	t      *testing.T
	cmd    *exec.Cmd
	pid    int // of the program, as the test sees it
	name   string
	output *safeBuffer
	ended  chan struct{}
}

// safeBuffer is written by the program and read by the test.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// start starts a program. What it said is logged when the test has failed.
func (s *space) start(words ...string) *process {
	s.t.Helper()
	cmd := s.command(words...)
	p := &process{t: s.t, cmd: cmd, name: words[0], output: &safeBuffer{}, ended: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = p.output, p.output
	cmd.WaitDelay = time.Second
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1")
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	go func() {
		_ = cmd.Wait()
		close(p.ended)
	}()
	s.t.Cleanup(func() {
		p.kill(syscall.SIGKILL)
		if s.t.Failed() {
			s.t.Logf("%s said:\n%s", p.name, p.output)
		}
	})
	// nsenter forks to enter the PID namespace.
	until(s.t, func() error {
		select {
		case <-p.ended:
			return nil
		default:
		}
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", cmd.Process.Pid))
		if err != nil {
			return err
		}
		p.pid, err = strconv.Atoi(strings.TrimSpace(string(children)))
		return err
	})
	return p
}

func (p *process) signal(sig syscall.Signal) {
	p.t.Helper()
	if err := syscall.Kill(p.pid, sig); err != nil {
		p.t.Fatalf("signal %s: %v", p.name, err)
	}
}

// kill ends the program and waits until it has.
func (p *process) kill(sig syscall.Signal) {
	select {
	case <-p.ended:
		return
	default:
	}
	_ = syscall.Kill(p.pid, sig)
	<-p.ended
}
