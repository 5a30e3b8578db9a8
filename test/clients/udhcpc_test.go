package clients

import (
	"strings"
	"syscall"
	"testing"
)

// udhcpc4 is busybox's client with Debian's script. It asks for the classless
// routes only when it is told to.
func udhcpc4(row string, classic bool, options string) client4 {
	words := strings.Fields("udhcpc -f -v -i eth0 -t 5 -T 1 -O mtu " + options)
	return client4{
		row:     row,
		classic: classic,
		start: func(l *lab) *process {
			need(l.t, "udhcpc", "udhcpc")
			need(l.t, "busybox", "busybox-static")
			return l.guest.start(words...)
		},
		routes: func(addr string) []string {
			if classic {
				return []string{"default via " + router + " dev eth0", "192.168.1.0/24 dev eth0 proto kernel scope link src " + addr}
			}
			// The script writes both in one line.
			return []string{"default via " + gateway + " dev eth0 onlink"}
		},
		refuse:   func(p *process) { p.signal(syscall.SIGUSR1) },
		release:  func(_ *lab, p *process) { p.signal(syscall.SIGUSR2) },
		resolver: []string{"cat /etc/resolv.conf", "nameserver 9.9.9.9", "domain example.org"},
		// It goes by the lease alone: half of it is gone, less than a minute is left,
		// so it rebinds.
		short: [3]uint32{10, 17, 20},
	}
}

func udhcpcWith121() client4 { return udhcpc4("udhcpc -O 121", false, "-O 121") }
func udhcpcAsIs() client4    { return udhcpc4("udhcpc", true, "") }

func TestUdhcpc(t *testing.T)             { t.Parallel(); udhcpcAsIs().live(t) }
func TestUdhcpcKeeps(t *testing.T)        { t.Parallel(); udhcpcAsIs().keep(t) }
func TestUdhcpcWith121(t *testing.T)      { t.Parallel(); udhcpcWith121().live(t) }
func TestUdhcpcWith121Keeps(t *testing.T) { t.Parallel(); udhcpcWith121().keep(t) }
