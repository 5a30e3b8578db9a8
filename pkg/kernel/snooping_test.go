package kernel_test

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestHearsDespiteSnooping: where somebody makes a bridge of ours snoop, with a
// querier on it, and no agent is there to undo it, what a guest sends to the DHCPv6
// servers still comes to the bridge, although nobody there is a member of the group.
// Another port of the bridge tells when snooping is in effect: it gets the group's
// frames no more.
func TestHearsDespiteSnooping(t *testing.T) {
	l := newLab(t)
	other := attach(t, "other0")
	run(t, "ip link set other0 master s32-vm0")
	waitUp(t, "other0")
	fd, err := packetSocket("s32-vm0")
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	bridge := &port{t: t, fd: fd}
	// The querier is heeded once what answers it has had the time to: 0.1 s here.
	run(t, "ip link set s32-vm0 type bridge mcast_query_response_interval 10")
	run(t, "ip link set s32-vm0 type bridge mcast_snooping 1 mcast_querier 1")
	send := func(group, text string) {
		f := udp(vms(3)[0].NICs[0].MAC, "fe80::2", group, 547, text)
		to := netip.MustParseAddr(group).As16()
		copy(f, append([]byte{0x33, 0x33}, to[12:]...))
		l.guest[0].send(f)
	}
	deadline := time.Now().Add(20 * time.Second)
	for i, quiet := 0, 0; quiet < 3; i++ {
		ask, mark := fmt.Sprintf("ask %d.", i), fmt.Sprintf("mark %d.", i)
		send("ff02::1:2", ask)
		send("ff02::1", mark)
		quiet++
		for _, f := range other.until(mark) {
			if bytes.Contains(f, []byte(ask)) {
				quiet = 0
			}
		}
		bridge.until(ask)
		if time.Now().After(deadline) {
			t.Fatal("the bridge does not snoop")
		}
	}
}
