package clients

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// raw runs f with a function that sends a frame out of the guest's interface, as
// a program with a packet socket in the guest would.
func (l *lab) raw(f func(send func([]byte) error) error) {
	l.t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread is in the guest's namespace
		done <- l.rawHere(f)
	}()
	if err := <-done; err != nil {
		l.t.Error(err)
	}
}

func (l *lab) rawHere(f func(send func([]byte) error) error) error {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", l.guest.pid))
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter the guest's network namespace: %w", err)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a packet socket: %w", err)
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("eth0")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, ifr); err != nil {
		return fmt.Errorf("look for eth0: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: int(ifr.Uint32())}); err != nil {
		return fmt.Errorf("bind to eth0: %w", err)
	}
	return f(func(frame []byte) error {
		if _, err := unix.Write(fd, frame); err != nil {
			return fmt.Errorf("send a frame: %w", err)
		}
		return nil
	})
}
