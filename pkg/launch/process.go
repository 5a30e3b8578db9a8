package launch

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
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// What a process gets.
const (
	maxLog   = 1 << 20         // bytes of log that a start appends to; a longer one is emptied
	stopTime = 2 * time.Second // between SIGTERM and SIGKILL
	killTime = 5 * time.Second // for SIGKILL to take effect
)

// lockFile is locked (flock) by a responder that was started as a process for as
// long as it lives: it inherits the open file. The file holds its process id.
// So no two run at once, whoever starts them, and one that has no socket yet, or
// no longer, is still found.
func lockFile(vmDir string) string { return filepath.Join(vmDir, "responder.lock") }

// startProcess starts a detached responder unless one holds the lock.
func (l *Launcher) startProcess(vmDir string) error {
	lock, err := os.OpenFile(lockFile(vmDir), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("open the lock: %w", err)
	}
	defer func() { _ = lock.Close() }()
	err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil // it comes up, or answers slowly
	}
	if err != nil {
		return fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	if err := lock.Truncate(0); err != nil {
		return fmt.Errorf("clear the lock: %w", err)
	}
	if err := removeSocket(vmDir); err != nil {
		return err
	}
	log, err := openLog(logFile(vmDir))
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	// libvirtd waits for whoever holds a hook's pipes, and what else a caller may
	// have left open is none of the responder's business. Go's own files close
	// themselves; this is for inherited ones. A kernel before 5.11 does not know it.
	_ = unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC)
	cmd := exec.Command(l.binary, vmDir)
	cmd.Dir = "/"
	cmd.Env = []string{"GOMAXPROCS=1", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	if state := os.Getenv("SLASH32_STATE_DIR"); state != "" {
		cmd.Env = append(cmd.Env, "SLASH32_STATE_DIR="+state)
	}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{lock}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := startBounded(cmd); err != nil {
		return fmt.Errorf("run the responder: %w", err)
	}
	pid := cmd.Process.Pid
	l.mu.Lock()
	l.children[vmDir] = pid
	l.mu.Unlock()
	// It outlives this program, or is reaped by died, Stop or Watch.
	if err := cmd.Process.Release(); err != nil {
		return fmt.Errorf("let go of process %d: %w", pid, err)
	}
	if _, err := lock.WriteAt([]byte(strconv.Itoa(pid)), 0); err != nil {
		return fmt.Errorf("note process %d: %w", pid, err)
	}
	return nil
}

func openLog(path string) (*os.File, error) {
	flags := os.O_WRONLY | os.O_CREATE | os.O_APPEND
	if st, err := os.Lstat(path); err == nil && st.Size() > maxLog {
		flags |= os.O_TRUNC
	}
	f, err := os.OpenFile(path, flags|unix.O_NOFOLLOW, 0o640)
	if err != nil {
		return nil, fmt.Errorf("open the responder's log: %w", err)
	}
	return f, nil
}

func removeSocket(vmDir string) error {
	if err := os.Remove(socket(vmDir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the stale socket: %w", err)
	}
	return nil
}

// stopProcess ends the process behind the socket, and the one that holds the
// lock.
func (l *Launcher) stopProcess(ctx context.Context, vmDir string) error {
	for _, find := range []func(context.Context, string) (*process, error){l.listener, l.holder} {
		p, err := find(ctx, vmDir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		err = p.end(ctx)
		if err := errors.Join(err, p.close()); err != nil {
			return err
		}
	}
	l.mu.Lock()
	delete(l.children, vmDir)
	l.mu.Unlock()
	return removeSocket(vmDir)
}

// died tells whether a responder that this Launcher started has ended, and how.
func (l *Launcher) died(vmDir string) (died bool, why string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	pid, ok := l.children[vmDir]
	if !ok {
		return false, ""
	}
	var status unix.WaitStatus
	got, err := unix.Wait4(pid, &status, unix.WNOHANG, nil)
	switch {
	case errors.Is(err, unix.ECHILD): // reaped elsewhere
		why = "its exit status is not known"
	case err != nil || got == 0:
		return false, ""
	case status.Signaled():
		why = "signal " + status.Signal().String()
	default:
		why = "exit status " + strconv.Itoa(status.ExitStatus())
	}
	delete(l.children, vmDir)
	return true, why
}

// end sends SIGTERM, then SIGKILL, and returns when the process is gone.
func (p *process) end(ctx context.Context) error {
	for _, try := range []struct {
		signal unix.Signal
		wait   time.Duration
	}{{unix.SIGTERM, stopTime}, {unix.SIGKILL, killTime}} {
		err := unix.PidfdSendSignal(p.fd, try.signal, nil, 0)
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("send %v to process %d: %w", try.signal, p.pid, err)
		}
		wait, cancel := context.WithTimeout(ctx, try.wait)
		err = p.wait(wait)
		cancel()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("wait for process %d to end: %w", p.pid, ctx.Err())
		}
	}
	return fmt.Errorf("process %d does not end, not even by SIGKILL", p.pid)
}

// inUnit tells whether the responder runs in its systemd unit.
func (l *Launcher) inUnit(ctx context.Context, vmDir string, id fmt.Stringer) bool {
	p, err := l.listener(ctx, vmDir)
	if err != nil {
		return false
	}
	defer func() { _ = p.close() }()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", p.pid))
	return err == nil && bytes.Contains(b, []byte("/"+unitName(id)))
}

func lastOf(b []byte) string {
	s := strings.TrimSpace(string(b))
	return strings.TrimSpace(s[strings.LastIndexByte(s, '\n')+1:])
}
