// Package lab makes a small world for tests and the demo: a hypervisor with a
// real libvirtd, an upstream router and a host in the internet, all in
// namespaces of their own, with real guests under QEMU. Several labs run side
// by side, and nothing of a lab outlives the process that made it, not even
// when that process is killed: every file is on a tmpfs in the lab's mount
// namespace, every process in its PID namespace, and the first process of that
// ends when a pipe to its maker closes.
//
// It needs root and the packages that Missing names.
package lab

import (
	"bufio"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/slash32/slash32/pkg/marks"
)

// Addresses of the lab's network, as host/topology.sh sets them.
const (
	Uplink4   = "192.0.2.2" // the hypervisor on up0, the uplink of table main
	Uplink6   = "2001:db8:0:1::2"
	Policy4   = "192.0.2.6" // the hypervisor on up1, the uplink of table 100
	Internet4 = "203.0.113.9"
	Internet6 = "2001:db8:9::9"
)

// Files on HV.
const (
	libvirtdLog = "/var/log/libvirt/libvirtd.log"
	agentLog    = "/var/log/slash32d.log"
	labDir      = "/var/lib/lab"
)

var (
	//go:embed host/init.sh
	initScript string
	//go:embed host/topology.sh
	topologyScript string
	//go:embed host/qemu.conf
	qemuConf string
	//go:embed host/libvirtd.conf
	libvirtdConf string
)

// Options says what is to be tested.
type Options struct {
	BinDir string // absolute; has slash32-hook, slash32-responder, slash32d and slash32
	Hook   string // absolute path of the qemu hook; default BinDir/slash32-hook
	Config string // content of /etc/slash32/slash32.yaml; "": no such file
}

// Lab is a running lab.
type Lab struct {
	HV, Router, Inet *Node

	opts    Options
	init    *exec.Cmd // PID 1 of the hypervisor
	started sync.WaitGroup
	stdin   io.WriteCloser // init ends when this closes
	agent   *Process
}

// Up makes a lab: network, libvirtd with the hook installed, no VM and no
// agent. ctx bounds the making only; the lab lasts until Close or the end of
// this process.
func Up(ctx context.Context, opts Options) (_ *Lab, err error) {
	if err := Missing(); err != nil {
		return nil, err
	}
	if opts.Hook == "" {
		opts.Hook = filepath.Join(opts.BinDir, "slash32-hook")
	}
	if _, err := os.Stat(opts.Hook); err != nil {
		return nil, fmt.Errorf("find the hook to install: %w", err)
	}
	l := &Lab{opts: opts}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	if err := l.startInit(); err != nil {
		return nil, err
	}
	if err := l.writeFiles(); err != nil {
		return nil, err
	}
	if _, err := l.HV.Exec(ctx, "bash", "-c", topologyScript); err != nil {
		return nil, fmt.Errorf("make the lab's network: %w", err)
	}
	if _, err := io.WriteString(l.stdin, "go\n"); err != nil {
		return nil, fmt.Errorf("start libvirtd: %w", err)
	}
	return l, l.waitLibvirtd(ctx)
}

func (l *Lab) startInit() error {
	init := exec.Command("bash", "-c", initScript)
	init.SysProcAttr = &syscall.SysProcAttr{
		Setsid: true, // Ctrl-C is for the lab's maker, which then closes the lab
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS |
			syscall.CLONE_NEWIPC | syscall.CLONE_NEWNET,
	}
	stdin, err := init.StdinPipe()
	if err != nil {
		return fmt.Errorf("make the lab's pipe: %w", err)
	}
	stdout, err := init.StdoutPipe()
	if err != nil {
		return fmt.Errorf("make the lab's pipe: %w", err)
	}
	init.Stderr = init.Stdout
	if err := init.Start(); err != nil {
		return fmt.Errorf("start the lab's namespaces: %w", err)
	}
	l.init, l.stdin = init, stdin
	out := bufio.NewReader(stdout)
	if line, err := out.ReadString('\n'); err != nil || line != "ready\n" {
		rest, _ := io.ReadAll(out)
		return fmt.Errorf("set up the lab's namespaces: %s%s", line, rest)
	}
	pid := init.Process.Pid
	l.HV = &Node{Name: "hv", init: pid, started: &l.started}
	l.Router = &Node{Name: "rtr", init: pid, started: &l.started}
	l.Inet = &Node{Name: "inet", init: pid, started: &l.started}
	return nil
}

// writeFiles writes what libvirtd and our programs find when they start.
func (l *Lab) writeFiles() error {
	files := map[string]string{
		// Without its own name here, libvirtd waits for a DNS server.
		"/etc/hosts":                 "127.0.0.1 localhost\n127.0.1.1 hv\n::1 localhost\n",
		"/etc/resolv.conf":           "nameserver " + Internet4 + "\n",
		"/etc/libvirt/qemu.conf":     qemuConf,
		"/etc/libvirt/libvirtd.conf": libvirtdConf,
	}
	if l.opts.Config != "" {
		files["/etc/slash32/slash32.yaml"] = l.opts.Config
	}
	for path, text := range files {
		if err := l.HV.WriteFile(path, text, 0o644); err != nil {
			return err
		}
	}
	// The package's account, for the responder to drop its privileges to.
	const id = "64032"
	for path, line := range map[string]string{
		"/etc/passwd": marks.User + ":x:" + id + ":" + id + "::/nonexistent:/usr/sbin/nologin\n",
		"/etc/group":  marks.User + ":x:" + id + ":\n",
	} {
		have, err := l.HV.ReadFile(path)
		if err == nil {
			err = l.HV.WriteFile(path, have+line, 0o644)
		}
		if err != nil {
			return err
		}
	}
	if err := os.Symlink(l.opts.Hook, l.HV.Path("/etc/libvirt/hooks/qemu.d/slash32")); err != nil {
		return fmt.Errorf("install the hook: %w", err)
	}
	image, err := initramfs()
	if err != nil {
		return err
	}
	return l.HV.WriteFile(initramfsPath, string(image), 0o644)
}

// Close ends everything in the lab at once, as a power cut would.
func (l *Lab) Close() error {
	if l.init == nil {
		return nil
	}
	if err := l.init.Process.Kill(); err != nil {
		return fmt.Errorf("end the lab: %w", err)
	}
	_ = l.init.Wait() // "signal: killed", and all of its PID namespace with it
	l.init = nil
	l.started.Wait() // their parents are outside, and end a moment later
	return nil
}
