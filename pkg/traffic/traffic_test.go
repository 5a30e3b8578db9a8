package traffic_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/traffic"
)

func nic(n byte) traffic.NIC {
	return traffic.NIC{UUID: uuid.UUID{15: n}, MAC: mac.Addr{2, 0, 0, 0, 0, n}}
}

func owner(n byte) traffic.Owner { return traffic.Owner{NIC: nic(n), Name: "vm"} }

// in is a reading of so many bytes in, of the Internet.
func in(bytes uint64) traffic.Traffic {
	return traffic.Traffic{In: traffic.Classes{Internet: traffic.Count{Packets: bytes / 10, Bytes: bytes}}}
}

func TestBook(t *testing.T) {
	at := time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
	k := traffic.NewBook()
	k.Booted("one")
	own := func(bridge string, n byte) func() {
		return func() { k.Own(map[string]traffic.Owner{bridge: owner(n)}, at) }
	}
	see := func(bridge string, bytes uint64) func() {
		return func() { k.Observe(map[string]traffic.Traffic{bridge: in(bytes)}, at) }
	}
	// A process that dies and one that comes with the file.
	again := func() {
		b, err := json.Marshal(k.Document())
		if err != nil {
			t.Fatal(err)
		}
		if k, err = traffic.Parse(b); err != nil {
			t.Fatal(err)
		}
		k.Booted("one")
	}
	take := func(name, boot string, bytes uint64) func() {
		return func() {
			k.Take(name, traffic.Final{Boot: boot, Bridges: map[string]traffic.Traffic{"br": in(bytes)}}, at)
		}
	}
	for _, step := range []struct {
		name     string
		do       func()
		one, two uint64
	}{
		{"nobody's", see("br", 1000), 0, 0},
		{"what was counted before it was known whose it is", func() { own("br", 1)(); see("br", 1000)() }, 1000, 0},
		{"the same again", see("br", 1000), 1000, 0},
		{"more", see("br", 1500), 1500, 0},
		{"less: begun anew", see("br", 20), 1520, 0},
		{"another process", again, 1520, 0},
		{"which sees more", see("br", 30), 1530, 0},
		{"begun anew, and more than before", func() { k.Restart("br", traffic.InInternet); see("br", 100)() }, 1630, 0},
		{"another of its counters has begun anew", func() { k.Restart("br", traffic.OutLocal); see("br", 100)() }, 1630, 0},
		{"another bridge of its own", func() { own("br2", 1)(); see("br2", 70)() }, 1700, 0},
		{"the old one is nobody's", see("br", 5000), 1700, 0},
		{"taken over by another NIC, going on", func() { own("br2", 2)(); see("br2", 100)() }, 1700, 30},
		{"back", func() { own("br", 1)(); k.Restart("br", traffic.InInternet); see("br", 10)() }, 1710, 30},
		{"a hook's record", take("a", "one", 40), 1740, 30},
		{"a hook's record again", take("a", "one", 40), 1740, 30},
		{"in another process, too", func() { again(); take("a", "one", 40)() }, 1740, 30},
		{"of another boot", take("b", "zero", 4000), 1740, 30},
		{"the bridge after it", see("br", 5), 1745, 30},
		{"another boot", func() { k.Booted("two"); see("br", 6)(); see("br2", 300)() }, 1751, 330},
	} {
		step.do()
		if d := cmp.Diff([]traffic.Traffic{in1(step.one, k.Sum(nic(1))), in1(step.two, k.Sum(nic(2)))}, []traffic.Traffic{k.Sum(nic(1)), k.Sum(nic(2))}); d != "" {
			t.Errorf("%s (-want +got):\n%s", step.name, d)
		}
	}
	if n := k.Forget(at, func(uuid.UUID) bool { return true }); n != 0 {
		t.Errorf("forgot %d that were read just then", n)
	}
	if n := k.Forget(at.Add(time.Second), func(id uuid.UUID) bool { return id == nic(2).UUID }); n != 1 || k.Sum(nic(2)) != (traffic.Traffic{}) || k.Sum(nic(1)).In.Internet.Bytes != 1751 {
		t.Errorf("forgot %d: %+v", n, k.Document())
	}
}

// in1 is so many bytes, with the packets of got: those do not add up where
// readings are no multiple of ten.
func in1(bytes uint64, got traffic.Traffic) traffic.Traffic {
	t := in(bytes)
	t.In.Internet.Packets = got.In.Internet.Packets
	return t
}

func TestParse(t *testing.T) {
	for _, bad := range []string{"", "{}", `{"version": 2}`, `{"version": 1, "nics": {}}`, `{"version": 1, "nics": [{"uuid": "x"}]}`, "[]"} {
		if _, err := traffic.Parse([]byte(bad)); err == nil {
			t.Errorf("%q is taken for counters", bad)
		}
	}
}

func FuzzParse(f *testing.F) {
	k := traffic.NewBook()
	k.Own(map[string]traffic.Owner{"br": owner(1)}, time.Unix(0, 0).UTC())
	k.Observe(map[string]traffic.Traffic{"br": in(10)}, time.Unix(0, 0).UTC())
	b, err := json.Marshal(k.Document())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"version": 1, "taken": ["x"], "nics": [{"bridge": "a"}, {"bridge": "a"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := traffic.Parse(b)
		if err != nil {
			return
		}
		k.Own(map[string]traffic.Owner{"br": owner(1), "a": owner(2)}, time.Unix(1, 0))
		k.Observe(map[string]traffic.Traffic{"br": in(10), "a": in(7)}, time.Unix(1, 0))
		if _, err := json.Marshal(k.Document()); err != nil {
			t.Errorf("a book that was read cannot be written: %v", err)
		}
	})
}
