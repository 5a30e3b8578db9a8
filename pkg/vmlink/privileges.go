package vmlink

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"syscall"
	"unsafe"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// nobody is the user and group id of an account that owns nothing.
const nobody = 65534

// dropPrivileges makes the whole process an ordinary one of the named account
// that can never gain anything again and may make only the system calls that
// serving takes. leases is the descriptor of the file that it may still write, or
// -1.
func dropPrivileges(account string, leases int, log logrus.FieldLogger) error {
	if err := dropBounding(); err != nil {
		return err
	}
	// A process that was started as an ordinary user with CAP_NET_RAW can't
	// and need not become another.
	if os.Geteuid() == 0 {
		if err := become(account, log); err != nil {
			return err
		}
	}
	if err := clearCapabilities(); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("forbid core dumps: %w", err)
	}
	return restrictSyscalls(leases)
}

// dropBounding empties the bounding set on every thread. Each call that reaches
// every thread stops the whole process for some 100 µs: whoever starts the
// responder does well to leave it a small set or, as package launch does, none.
func dropBounding() error {
	for c := 0; ; c++ {
		have, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(c), 0, 0, 0)
		if errors.Is(err, unix.EINVAL) {
			return nil // behind the kernel's last capability
		}
		if err != nil {
			return fmt.Errorf("read the bounding set: %w", err)
		}
		if have == 0 {
			continue
		}
		_, _, errno := syscall.AllThreadsSyscall(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, uintptr(c), 0)
		if errno == unix.EPERM {
			// Without CAP_SETPCAP. The set matters at an execve only, which
			// the system call filter forbids.
			return nil
		}
		if errno != 0 {
			return fmt.Errorf("drop capability %d from the bounding set: %w", c, errno)
		}
	}
}

func become(account string, log logrus.FieldLogger) error {
	uid, gid, err := lookup(account)
	if err != nil {
		log.WithError(err).Warnf("serving as uid %d; make the account: useradd --system --no-create-home %s", nobody, account)
		uid, gid = nobody, nobody
	}
	// Of none, as a service is, it need not stop the threads to leave them.
	if groups, err := unix.Getgroups(); err != nil || len(groups) > 0 {
		if err := syscall.Setgroups(nil); err != nil {
			return fmt.Errorf("leave all groups: %w", err)
		}
	}
	if err := syscall.Setresgid(gid, gid, gid); err != nil {
		return fmt.Errorf("change to group %d: %w", gid, err)
	}
	if err := syscall.Setresuid(uid, uid, uid); err != nil {
		return fmt.Errorf("change to user %d: %w", uid, err)
	}
	return nil
}

// lookup finds an account's ids. Root's are not an account to drop to.
func lookup(account string) (uid, gid int, err error) {
	u, err := user.Lookup(account)
	if err != nil {
		return 0, 0, fmt.Errorf("look up the account %q: %w", account, err)
	}
	if uid, err = strconv.Atoi(u.Uid); err != nil {
		return 0, 0, fmt.Errorf("user id of the account %q: %w", account, err)
	}
	if gid, err = strconv.Atoi(u.Gid); err != nil {
		return 0, 0, fmt.Errorf("group id of the account %q: %w", account, err)
	}
	if uid == 0 || gid == 0 {
		return 0, 0, fmt.Errorf("the account %q is root's", account)
	}
	return uid, gid, nil
}

// clearCapabilities empties the effective, permitted and inheritable sets on
// every thread, and with them the ambient set, which the kernel keeps within
// both of the latter (capabilities(7)).
func clearCapabilities() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&none[0])), 0)
	if errno != 0 {
		return fmt.Errorf("clear the capabilities: %w", errno)
	}
	return nil
}
