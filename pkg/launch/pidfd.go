package launch

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process is a running process that is held by a pidfd (pidfd_open(2)), so that
// a number that is used again does no harm.
type process struct {
	pid int
	fd  int
}

func (p *process) close() error { return unix.Close(p.fd) }

// wait returns nil when the process has ended, or the context's error. A child
// of ours is reaped.
func (p *process) wait(ctx context.Context) error {
	// The runtime's poller waits, so that no thread does.
	dup, err := unix.FcntlInt(uintptr(p.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("copy the pidfd of %d: %w", p.pid, err)
	}
	if err := unix.SetNonblock(dup, true); err != nil {
		return errors.Join(fmt.Errorf("prepare the pidfd of %d: %w", p.pid, err), unix.Close(dup))
	}
	f := os.NewFile(uintptr(dup), "pidfd")
	defer func() { _ = f.Close() }()
	raw, err := f.SyscallConn()
	if err != nil {
		return fmt.Errorf("wait for process %d: %w", p.pid, err)
	}
	defer context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Unix(1, 0)) })()
	err = raw.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return err == nil && n > 0
	})
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return ctx.Err()
	default:
		return fmt.Errorf("wait for process %d: %w", p.pid, err)
	}
	var status unix.WaitStatus
	if _, err := unix.Wait4(p.pid, &status, unix.WNOHANG, nil); err != nil && !errors.Is(err, unix.ECHILD) {
		return fmt.Errorf("reap process %d: %w", p.pid, err)
	}
	return nil
}

// listener is the process that listens on the VM's socket. When there is none
// the error wraps fs.ErrNotExist.
func (l *Launcher) listener(_ context.Context, vmDir string) (*process, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("make a socket: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	err = unix.Connect(fd, &unix.SockaddrUnix{Name: socket(vmDir)})
	switch {
	case errors.Is(err, unix.ECONNREFUSED):
		return nil, fmt.Errorf("nothing listens on %s: %w", socket(vmDir), fs.ErrNotExist)
	case err != nil:
		return nil, fmt.Errorf("connect to %s: %w", socket(vmDir), err)
	}
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return nil, fmt.Errorf("ask who listens on %s: %w", socket(vmDir), err)
	}
	pidfd, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	switch {
	case err == nil:
		return &process{pid: int(cred.Pid), fd: pidfd}, nil
	case errors.Is(err, unix.ENOPROTOOPT): // Linux before 6.5
		return l.open(int(cred.Pid))
	case errors.Is(err, unix.ESRCH), errors.Is(err, unix.EINVAL): // it has ended and the socket lives on in another process
		return nil, fmt.Errorf("who listened on %s has ended: %w", socket(vmDir), fs.ErrNotExist)
	}
	return nil, fmt.Errorf("hold the process that listens on %s: %w", socket(vmDir), err)
}

// holder is the process that holds the VM's lock.
func (l *Launcher) holder(ctx context.Context, vmDir string) (*process, error) {
	f, err := os.Open(lockFile(vmDir))
	if err != nil {
		return nil, fmt.Errorf("open the lock: %w", err)
	}
	defer func() { _ = f.Close() }()
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if err == nil {
		return nil, fmt.Errorf("nobody holds %s: %w", f.Name(), fs.ErrNotExist)
	}
	if !errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("try the lock %s: %w", f.Name(), err)
	}
	pid, err := notedPID(ctx, f)
	if err != nil {
		return nil, err
	}
	return l.open(pid)
}

// notedPID reads the process id in a lock that is held. Whoever starts a
// responder holds the lock a moment before it notes the number.
func notedPID(ctx context.Context, lock *os.File) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	tick := time.NewTicker(readyStep)
	defer tick.Stop()
	for {
		b := make([]byte, 16)
		n, _ := lock.ReadAt(b, 0) // the end of the file is an error here
		pid, err := strconv.Atoi(string(b[:n]))
		if err == nil {
			return pid, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return 0, fmt.Errorf("read the process id in %s: %w", lock.Name(), err)
		}
	}
}

// open holds a process by its number if it is a responder.
func (l *Launcher) open(pid int) (*process, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return nil, fmt.Errorf("process %d has ended: %w", pid, fs.ErrNotExist)
	}
	if err != nil {
		return nil, fmt.Errorf("hold process %d: %w", pid, err)
	}
	// Only now that it is held its name says something.
	const longest = 15 // TASK_COMM_LEN - 1
	name := filepath.Base(l.binary)
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err == nil && strings.TrimSpace(string(comm)) == name[:min(len(name), longest)] {
		return &process{pid: pid, fd: fd}, nil
	}
	return nil, errors.Join(
		fmt.Errorf("process %d is not a responder (%s): %w", pid, strings.TrimSpace(string(comm)), fs.ErrNotExist),
		unix.Close(fd))
}

// child is the process that this Launcher started.
func (l *Launcher) child(_ context.Context, vmDir string) (*process, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	pid, ok := l.children[vmDir]
	if !ok {
		return nil, fmt.Errorf("none was started here: %w", fs.ErrNotExist)
	}
	// It has not been reaped, so the number is still its own.
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, syscall.ESRCH) {
		return nil, fmt.Errorf("process %d has ended: %w", pid, fs.ErrNotExist)
	}
	if err != nil {
		return nil, fmt.Errorf("hold process %d: %w", pid, err)
	}
	return &process{pid: pid, fd: fd}, nil
}

// earliestEnd is the least time from Watch to its channel's closing: it paces
// the restarts of a responder that can't start.
const earliestEnd = 500 * time.Millisecond

// Watch returns a channel that is closed when the responder of the VM whose
// directory is given has ended, though not sooner than 500 ms after the call. It
// stops watching, and leaves the channel open, when ctx ends. The error wraps
// fs.ErrNotExist when no responder runs.
func (l *Launcher) Watch(ctx context.Context, vmDir string) (<-chan struct{}, error) {
	var p *process
	err := fs.ErrNotExist
	for _, find := range []func(context.Context, string) (*process, error){l.child, l.listener, l.holder} {
		if p, err = find(ctx, vmDir); !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("watch the responder in %s: %w", vmDir, err)
	}
	earliest := time.NewTimer(earliestEnd)
	ended := make(chan struct{})
	go func() {
		defer earliest.Stop()
		defer func() { _ = p.close() }()
		if err := p.wait(ctx); err != nil {
			if ctx.Err() == nil {
				l.log.Errorf("watch the responder in %s: %v", vmDir, err)
			}
			return
		}
		select {
		case <-earliest.C:
			close(ended)
		case <-ctx.Done():
		}
	}()
	return ended, nil
}
