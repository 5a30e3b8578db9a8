package launch

import (
	"os/exec"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"
)

// startBounded starts a command whose capability bounding set has only what the
// responder needs before it drops everything. The set is a thread's, and a new
// process has that of the thread that made it: here one that ends at once. To
// drop it the responder would have to stop all its threads for each capability,
// which takes milliseconds of each VM's start.
func startBounded(cmd *exec.Cmd) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The main thread never ends, and its set is shown as the process's.
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
	keep := []uintptr{unix.CAP_SETGID, unix.CAP_SETUID, unix.CAP_SETPCAP, unix.CAP_NET_RAW}
	for c := uintptr(0); ; c++ {
		if _, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0); err != nil {
			return start() // behind the kernel's last
		}
		if !slices.Contains(keep, c) {
			// Without CAP_SETPCAP it stays; the responder does what it can.
			_ = unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		}
	}
}
