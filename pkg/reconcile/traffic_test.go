package reconcile_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/spool"
	"github.com/slash32/slash32/pkg/state"
	"github.com/slash32/slash32/pkg/traffic"
)

// count has the kernel's counter of what the Internet sent VM n say so much.
func (b *bed) count(n, packets int) {
	b.Helper()
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(fmt.Sprintf("delete element inet slash32 in_internet { s32-vm%[1]d }\nadd element inet slash32 in_internet { s32-vm%[1]d counter packets %[2]d bytes %[3]d }\n", n, packets, 100*packets))
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("set a counter: %v: %s", err, out)
	}
}

// wantSum checks what the agent says was forwarded to VM n, and that its file,
// once written, says the same.
func (b *bed) wantSum(n int, packets uint64, when string) {
	b.Helper()
	b.loop.Traffic.Collect(context.Background())
	nic := traffic.NIC{UUID: id(n), MAC: mac.Addr{0x52, 0x54, 0, 0, 0, byte(n)}}
	want := traffic.Traffic{In: traffic.Classes{Internet: traffic.Count{Packets: packets, Bytes: 100 * packets}}}
	if got := b.loop.Traffic.Sum(nic); got != want {
		b.Errorf("%s: %+v, want %d packets", when, got, packets)
	}
	b.loop.Traffic.Save()
	if got := b.inFile(nic); got != want {
		b.Errorf("%s: the file has %+v, want %d packets", when, got, packets)
	}
}

func (b *bed) inFile(n traffic.NIC) traffic.Traffic {
	b.Helper()
	text, err := os.ReadFile(b.spool.CountersFile())
	if err != nil {
		b.Fatal(err)
	}
	var d traffic.Document
	if err := json.Unmarshal(text, &d); err != nil {
		b.Fatal(err)
	}
	for _, e := range d.NICs {
		if e.UUID == n.UUID && e.MAC == n.MAC {
			return e.Traffic
		}
	}
	return traffic.Traffic{}
}

// TestTrafficIsMonotonic: no event makes a sum smaller, or count twice, and what
// was counted before something removes the counters is not lost.
func TestTrafficIsMonotonic(t *testing.T) {
	b := newBed(t)
	b.run(1, annotated(`ipv4='203.0.113.41'`))
	b.run(2, annotated(`ipv4='203.0.113.42'`))
	b.pass()
	b.plug(1)
	b.wantSum(1, 0, "at first")
	b.count(1, 10)
	b.wantSum(1, 10, "counted")
	b.wantSum(1, 10, "looked at again")
	b.wantSum(2, 0, "another VM")

	b.count(1, 15)
	b.restart()
	b.pass()
	b.wantSum(1, 15, "the agent restarted")

	b.sh("nft flush ruleset")
	b.pass()
	b.count(1, 40)
	b.wantSum(1, 55, "the ruleset was flushed, and more counted than before")

	b.sh("nft add chain inet slash32 mine") // what is damaged is made anew
	b.count(1, 50)
	b.pass()
	b.wantSum(1, 65, "the table was replaced")

	b.count(1, 7)
	b.sh("nft flush set inet slash32 out_local")
	b.pass()
	b.wantSum(1, 72, "a set was flushed")

	// It stops, with something counted that nobody has read yet, and starts again.
	b.count(1, 9)
	b.unplug(1)
	b.end(1)
	b.pass()
	b.wantSum(1, 74, "the VM stopped")
	b.run(1, annotated(`ipv4='203.0.113.41'`))
	b.pass()
	b.wantSum(1, 74, "the VM started again")
	b.count(1, 100)
	b.wantSum(1, 174, "and received more")

	// A hook removed the counters and has left what they said.
	boot, err := spool.BootID()
	if err != nil {
		t.Fatal(err)
	}
	left := func(packets uint64, boot string) {
		t.Helper()
		f := traffic.Final{Boot: boot, Bridges: map[string]traffic.Traffic{"s32-vm1": {In: traffic.Classes{Internet: traffic.Count{Packets: packets, Bytes: 100 * packets}}}}}
		b.later(time.Second)
		if err := b.spool.LeaveCounters(id(1), f, b.loop.Now()); err != nil {
			t.Fatal(err)
		}
	}
	for _, set := range state.TrafficCounters {
		b.sh("nft delete element inet slash32 " + set + " { s32-vm1 }")
		b.wantSum(1, 174, "while a hook removes the counters")
	}
	left(130, boot)
	left(999, "another boot")
	b.wantSum(1, 204, "a hook left the last reading")
	b.wantSum(1, 204, "once")
	left(130, "a third boot")
	b.pass()
	if all, err := b.spool.LeftCounters(); len(all) > 0 || err != nil {
		t.Errorf("left: %v, %v", all, err)
	}
	b.pass()
	b.count(1, 1)
	b.restart()
	b.pass()
	b.wantSum(1, 205, "the agent restarted again")

	// Long gone, and libvirt does not know it any more.
	b.end(1)
	b.pass()
	b.virt.mu.Lock()
	b.virt.defined = []uuid.UUID{id(2)}
	b.virt.mu.Unlock()
	b.later(29 * 24 * time.Hour)
	b.pass()
	b.wantSum(1, 205, "29 days later")
	b.later(2 * 24 * time.Hour)
	b.pass()
	b.wantSum(1, 0, "31 days later")
}

// A file that is not the counters' is set aside and said, and counting goes on.
func TestTrafficFileIsBroken(t *testing.T) {
	b := newBed(t)
	b.stop()
	if err := os.WriteFile(b.spool.CountersFile(), []byte(`{"version": 1, "nics": [{]`), 0o600); err != nil {
		t.Fatal(err)
	}
	b.restart()
	b.run(1, annotated(`ipv4='203.0.113.41'`))
	b.pass()
	b.count(1, 5)
	b.wantSum(1, 5, "after a broken file")
	if !strings.Contains(b.log.String(), "the counters begin at zero") {
		t.Error("nothing was said")
	}
	if _, err := os.Stat(b.spool.CountersFile() + ".bad"); err != nil {
		t.Error(err)
	}
}
