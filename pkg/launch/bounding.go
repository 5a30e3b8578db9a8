package launch

import (
	"fmt"
	"os/exec"
	"runtime"

	"golang.org/x/sys/unix"
)

// startBounded starts a command that can gain nothing, as root with only what the
// responder needs before it drops everything: the bounding set is empty,
// no_new_privs is set, and the inheritable set has what a root's new program gets
// in spite of the bounding set (capabilities(7)). All three are a thread's, and a
// new process has those of the thread that made it: here one that ends at once.
// To drop and set them itself the responder would have to stop all its threads
// for each capability, on the way to the guest's first answer.
func startBounded(cmd *exec.Cmd) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The main thread never ends, and its sets are shown as the process's.
			// While it waits here, the next one is another.
			done <- startBounded(cmd)
			runtime.UnlockOSThread()
			return
		}
		// Never unlocked: the thread ends with this function.
		done <- withBounding(cmd.Start)
	}()
	return <-done
}

func withBounding(start func() error) error {
	if err := inherit(unix.CAP_SETGID, unix.CAP_SETUID, unix.CAP_NET_RAW); err != nil {
		return fmt.Errorf("hand capabilities on: %w", err)
	}
	for c := uintptr(0); ; c++ {
		if _, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0); err != nil {
			break // behind the kernel's last
		}
		// Without CAP_SETPCAP it stays; the responder does what it can.
		_ = unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	return start()
}

// inherit makes the calling thread's inheritable set those of the capabilities
// that it has.
func inherit(capabilities ...int) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData // of 32 capabilities each
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return err
	}
	sets[0].Inheritable, sets[1].Inheritable = 0, 0
	for _, c := range capabilities {
		s := &sets[c/32]
		s.Inheritable |= s.Permitted & (1 << (c % 32))
	}
	return unix.Capset(&header, &sets[0])
}
