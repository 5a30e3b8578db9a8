package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Node is one host of the lab: a network namespace. All nodes share the files
// and the processes of the hypervisor.
type Node struct {
	Name    string
	init    int             // PID of the lab's first process
	started *sync.WaitGroup // what Start started on any node
}

// AddNode makes one more host: a network namespace with nothing but its loopback.
func (l *Lab) AddNode(ctx context.Context, name string) (*Node, error) {
	for _, command := range []string{"ip netns add " + name, "ip -n " + name + " link set lo up"} {
		if _, err := l.HV.Exec(ctx, strings.Fields(command)...); err != nil {
			return nil, fmt.Errorf("add a node: %w", err)
		}
	}
	return l.Node(name), nil
}

// Node is the node of a name that AddNode has made.
func (l *Lab) Node(name string) *Node {
	return &Node{Name: name, init: l.HV.init, started: &l.started}
}

// Give moves an interface of the node's into the network namespace of a process,
// named by its number outside of the lab.
func (n *Node) Give(ctx context.Context, link string, pid int) error {
	net := "--net"
	if n.Name != "hv" {
		net += "=" + n.Path("/run/netns/"+n.Name)
	}
	_, err := run(exec.CommandContext(ctx, "nsenter", "--target", strconv.Itoa(n.init), net, "--",
		"ip", "link", "set", link, "netns", strconv.Itoa(pid)), n.Name+"$ give "+link)
	return err
}

// Path is the path, outside the lab, of a file of the lab's. Sockets can be
// connected to and files read and written there.
func (n *Node) Path(path string) string {
	return filepath.Join("/proc", strconv.Itoa(n.init), "root", path)
}

// netns is the path of the node's network namespace.
func (n *Node) netns() string {
	if n.Name == "hv" {
		return filepath.Join("/proc", strconv.Itoa(n.init), "ns", "net")
	}
	return n.Path("/run/netns/" + n.Name)
}

// ReadFile returns the content of a file of the lab's.
func (n *Node) ReadFile(path string) (string, error) {
	b, err := os.ReadFile(n.Path(path))
	if err != nil {
		return "", fmt.Errorf("read a file of the lab's: %w", err)
	}
	return string(b), nil
}

// WriteFile writes a file of the lab's.
func (n *Node) WriteFile(path, text string, mode os.FileMode) error {
	if err := os.WriteFile(n.Path(path), []byte(text), mode); err != nil {
		return fmt.Errorf("write a file of the lab's: %w", err)
	}
	return nil
}

// Command is a command to run on the node. It is killed when ctx ends.
func (n *Node) Command(ctx context.Context, args ...string) *exec.Cmd {
	nsenter := []string{"--target", strconv.Itoa(n.init), "--mount", "--uts", "--ipc", "--pid", "--net=" + n.netns(),
		// nsenter waits for the command, which has to end when nsenter is killed.
		"--", "setpriv", "--pdeathsig", "KILL", "--"}
	cmd := exec.CommandContext(ctx, "nsenter", append(nsenter, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// Exec runs a command on the node and returns what it printed on standard
// output. An error has what it printed on standard error.
func (n *Node) Exec(ctx context.Context, args ...string) (string, error) {
	return run(n.Command(ctx, args...), n.Name+"$ "+strings.Join(args, " "))
}

func run(cmd *exec.Cmd, what string) (string, error) {
	var out, msg bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &msg
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%.200s: %w: %s", what, err, bytes.TrimSpace(append(msg.Bytes(), out.Bytes()...)))
	}
	return out.String(), nil
}

// Ping sends echo requests until one is answered or ctx ends.
func (n *Node) Ping(ctx context.Context, addr string) error {
	return Wait(ctx, func() error {
		_, err := n.Exec(ctx, "ping", "-n", "-c", "1", "-W", "1", addr)
		return err
	})
}

// Process is a command that runs on a node.
type Process struct {
	cmd   *exec.Cmd // nsenter, the process's parent
	ended chan struct{}
}

// Start starts a command whose output goes to a file of the lab's (appended).
// It runs until it ends, is signalled, or the lab is closed.
func (n *Node) Start(log string, args ...string) (*Process, error) {
	f, err := os.OpenFile(n.Path(log), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open a log: %w", err)
	}
	defer f.Close()
	cmd := n.Command(context.Background(), args...)
	cmd.Stdout, cmd.Stderr = f, f
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", args[0], err)
	}
	p := &Process{cmd: cmd, ended: make(chan struct{})}
	n.started.Go(func() {
		_ = cmd.Wait() // its status is that of a signal
		close(p.ended)
	})
	return p, nil
}

// PID is the process's ID outside the lab; 0 when it has ended.
func (p *Process) PID() (int, error) {
	nsenter := p.cmd.Process.Pid
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", nsenter, nsenter))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("find the process: %w", err)
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	return pid, nil
}

// Signal sends the process a signal and waits for its end.
func (p *Process) Signal(sig syscall.Signal) error {
	pid, err := p.PID()
	if err != nil {
		return err
	}
	if pid == 0 {
		<-p.ended
		return errors.New("the process has ended by itself")
	}
	if err := syscall.Kill(pid, sig); err != nil {
		return fmt.Errorf("signal process %d: %w", pid, err)
	}
	<-p.ended
	return nil
}

// pause waits between two looks at a condition.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Wait looks every 20 ms until check returns nil. When ctx ends first, the
// error is check's last one from before that.
func Wait(ctx context.Context, check func() error) error {
	var last error
	for {
		err := check()
		if err == nil {
			return nil
		}
		if ctx.Err() == nil || last == nil {
			last = err
		}
		if pause(ctx, 20*time.Millisecond) != nil {
			return fmt.Errorf("still not after the time given: %w", last)
		}
	}
}
