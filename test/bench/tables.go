package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// book collects values by (what, who) and keeps the order of appearance.
type book struct {
	table  string
	whats  []string
	units  map[string]string
	values map[[2]string][]float64
	notes  []string
}

func newBook(table string) *book {
	return &book{table: table, units: map[string]string{}, values: map[[2]string][]float64{}}
}

func (k *book) add(what, unit, who string, v float64) {
	if _, ok := k.units[what]; !ok {
		k.whats = append(k.whats, what)
		k.units[what] = unit
	}
	k.values[[2]string{what, who}] = append(k.values[[2]string{what, who}], v)
}

func (k *book) get(what, who string) (float64, bool) {
	v, ok := k.values[[2]string{what, who}]
	return median(v), ok
}

// goal is one line of the goals: ours against a bound computed from the peers.
type goal struct {
	what string
	text string
	ok   func(ours float64, peer func(who string) float64) bool
}

// print writes the table, the goals with what came out, and the notes.
func (k *book) print(w io.Writer, who []string, goals []goal) {
	k.printValues(w, who)
	if len(goals) > 0 {
		fmt.Fprintln(w)
	}
	k.printGoals(w, ours.name, goals)
	k.printNotes(w)
}

func (k *book) printValues(w io.Writer, who []string) {
	fmt.Fprintf(w, "\n%s\n\n", k.table)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(tw, "what\tunit\t%s\t\n", strings.Join(who, "\t"))
	for _, what := range k.whats {
		fmt.Fprintf(tw, "%s\t%s\t", what, k.units[what])
		for _, n := range who {
			if v, ok := k.get(what, n); ok {
				fmt.Fprintf(tw, "%s\t", number(v))
			} else {
				fmt.Fprint(tw, "-\t")
			}
		}
		fmt.Fprintln(tw)
	}
	tw.Flush()
}

// printGoals says of the values in one column whether they are as they should be.
func (k *book) printGoals(w io.Writer, who string, goals []goal) {
	for _, g := range goals {
		v, ok := k.get(g.what, who)
		word := "reached "
		switch {
		case !ok:
			word = "unknown "
		case !g.ok(v, func(n string) float64 { p, _ := k.get(g.what, n); return p }):
			word = "MISSED  "
		}
		fmt.Fprintf(w, "  %s %s: %s (%s)\n", word, g.what, g.text, number(v))
	}
}

func (k *book) printNotes(w io.Writer) {
	for _, n := range k.notes {
		fmt.Fprintln(w, "  note:", n)
	}
}

func (k *book) figures() []figure {
	var out []figure
	for _, what := range k.whats {
		for key, v := range k.values {
			if key[0] == what {
				out = append(out, figure{Table: k.table, What: what, Who: key[1], Value: median(v), Unit: k.units[what], Rounds: len(v)})
			}
		}
	}
	return out
}

func number(v float64) string {
	if v >= 100 || v == float64(int(v)) {
		return strconv.FormatFloat(v, 'f', 0, 64)
	}
	return strconv.FormatFloat(v, 'f', 2, 64)
}

// The rows of the responder's table.
const (
	rowP50      = "full exchange p50"
	rowP99      = "full exchange p99"
	rowRate     = "exchanges per second"
	rowARP      = "ARP p50"
	rowARPRate  = "ARP per second"
	rowNS       = "NS p50"
	rowFirst    = "exec to first OFFER"
	rowHundred  = "100 at once, per VM"
	rowDirty    = "private dirty per VM"
	rowGrowth   = "growth after 5,000 exchanges"
	rowAll      = "anon + kernel memory per VM"
	rowThreads  = "threads"
	rowBlast    = "guest's own traffic, cost"
	rowIdle     = "CPU while guest sends other traffic"
	rowRTNL     = "worst exchange, RTNL busy"
	rowRTNLBoot = "start, RTNL busy"
	rowKill     = "100 killed and reaped"
)

const (
	crowd     = 100 // started or killed at once
	slowPeers = 10  // of these, so many are asked for exchanges before their memory is read
)

func responderTables(ctx context.Context, o options, w io.Writer) error {
	b, err := newBed(ctx, o.bin, max(o.vms, crowd))
	if err != nil {
		return err
	}
	k := newBook("The responder (medians; latencies in µs at realtime priority, server and guest on a core each)")
	servers := []server{cServer, ours, dnsmasq, isc}
	for _, part := range []struct {
		name string
		run  func(context.Context, *bed, options, *book, []server) error
	}{
		{"latency", latency}, {"starts", starts}, {"memory", memory}, {"traffic", traffic}, {"RTNL", rtnl}, {"kill", kill},
	} {
		begin := time.Now()
		fmt.Fprintf(os.Stderr, "bench: %s ...", part.name)
		err := part.run(ctx, b, o, k, servers)
		fmt.Fprintf(os.Stderr, " %.0f s\n", time.Since(begin).Seconds())
		if err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
	}
	k.print(w, []string{"C", "slash32", "dnsmasq", "ISC dhcpd"}, []goal{
		{rowP50, "≤ 1.15 × C", func(v float64, p func(string) float64) bool { return v <= 1.15*p("C") }},
		{rowP99, "≤ 1.3 × C", func(v float64, p func(string) float64) bool { return v <= 1.3*p("C") }},
		{rowRate, "≥ 0.8 × C and ≥ 5 × dnsmasq", func(v float64, p func(string) float64) bool { return v >= .8*p("C") && v >= 5*p("dnsmasq") }},
		{rowARP, "≤ 1.3 × C", func(v float64, p func(string) float64) bool { return v <= 1.3*p("C") }},
		{rowARPRate, "≥ 0.85 × C", func(v float64, p func(string) float64) bool { return v >= .85*p("C") }},
		{rowNS, "≤ 1.3 × C", func(v float64, p func(string) float64) bool { return v <= 1.3*p("C") }},
		{rowFirst, "≤ 3 × C and ≤ 0.6 × dnsmasq", func(v float64, p func(string) float64) bool { return v <= 3*p("C") && v <= .6*p("dnsmasq") }},
		{rowHundred, "≤ 1.5 ms", func(v float64, _ func(string) float64) bool { return v <= 1.5 }},
		{rowDirty, "≤ 768 KiB", func(v float64, _ func(string) float64) bool { return v <= 768 }},
		{rowGrowth, "≤ 5 %", func(v float64, _ func(string) float64) bool { return v <= 5 }},
		{rowAll, "≤ 1,024 KiB", func(v float64, _ func(string) float64) bool { return v <= 1024 }},
		{rowThreads, "≤ 4", func(v float64, _ func(string) float64) bool { return v <= 4 }},
		{rowBlast, "≤ 15 %", func(v float64, _ func(string) float64) bool { return v <= 15 }},
		{rowIdle, "< 2 % of a core", func(v float64, _ func(string) float64) bool { return v < 2 }},
		{rowRTNL, "≤ 10 ms", func(v float64, _ func(string) float64) bool { return v <= 10 }},
		{rowRTNLBoot, "≤ 10 ms", func(v float64, _ func(string) float64) bool { return v <= 10 }},
		{rowKill, "≤ 50 ms", func(v float64, _ func(string) float64) bool { return v <= 50 }},
	})
	return writeJSON(filepath.Join(o.out, "responder.json"), k.figures())
}

// latency measures, interleaved, what a guest feels.
func latency(ctx context.Context, b *bed, o options, k *book, servers []server) error {
	g, m := guest(0), guestMAC(0)
	for range o.rounds {
		for _, s := range servers {
			cmd, err := b.start(ctx, s, 0, true, "")
			if err != nil {
				return err
			}
			err = func() error {
				defer stop(cmd)
				if err := b.ready(ctx, 0); err != nil {
					return fmt.Errorf("%s: %w", s.name, err)
				}
				ex, err := b.ask(ctx, true, "exchange", g, m, "3000")
				if err != nil {
					return fmt.Errorf("%s: %w", s.name, err)
				}
				k.add(rowP50, "µs", s.name, ex[1]/1e3)
				k.add(rowP99, "µs", s.name, ex[2]/1e3)
				rate, err := b.ask(ctx, true, "rate", g, m, "20000", "16")
				if err != nil {
					return fmt.Errorf("%s: %w", s.name, err)
				}
				k.add(rowRate, "1/s", s.name, rate[1])
				if s.dhcpOnly {
					return nil
				}
				arp, err := b.ask(ctx, true, "arp", g, m, "3000", gateway)
				if err != nil {
					return fmt.Errorf("%s: %w", s.name, err)
				}
				k.add(rowARP, "µs", s.name, arp[1]/1e3)
				arp, err = b.ask(ctx, true, "arprate", g, m, "100000", gateway)
				if err != nil {
					return fmt.Errorf("%s: %w", s.name, err)
				}
				k.add(rowARPRate, "1/s", s.name, arp[1])
				ns, err := b.ask(ctx, true, "ns", g, m, "3000")
				if err != nil {
					return fmt.Errorf("%s: %w", s.name, err)
				}
				k.add(rowNS, "µs", s.name, ns[1]/1e3)
				return nil
			}()
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// first starts server s on bridge i from the generator and gives milliseconds
// from exec to the first OFFER; the server is killed.
func (b *bed) first(ctx context.Context, s server, i int) (float64, error) {
	if err := b.prepare(i); err != nil {
		return 0, err
	}
	v, err := b.ask(ctx, false, append([]string{"first", guest(i), guestMAC(i), "/run/netns/" + serverNS}, s.command(b, i)...)...)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", s.name, err)
	}
	end(int(v[1]))
	return v[0] / 1e6, nil
}

func starts(ctx context.Context, b *bed, o options, k *book, servers []server) error {
	for range 4 * o.rounds {
		for _, s := range servers {
			ms, err := b.first(ctx, s, 0)
			if err != nil {
				return err
			}
			k.add(rowFirst, "ms", s.name, ms)
		}
	}
	for range o.rounds {
		for _, s := range []server{cServer, ours, dnsmasq} {
			ms, err := b.crowdStart(ctx, s)
			if err != nil {
				return err
			}
			k.add(rowHundred, "ms", s.name, ms)
		}
	}
	return nil
}

// crowdStart starts one server per bridge, all at once, and asks each until it
// has offered: the time per VM in ms. The servers are killed.
func (b *bed) crowdStart(ctx context.Context, s server) (float64, error) {
	var lines strings.Builder
	for i := range crowd {
		if err := b.prepare(i); err != nil {
			return 0, err
		}
		fmt.Fprintf(&lines, "%s %s %s\n", guest(i), guestMAC(i), strings.Join(s.command(b, i), " "))
	}
	file := filepath.Join(b.dir, "crowd")
	if err := os.WriteFile(file, []byte(lines.String()), 0o644); err != nil {
		return 0, fmt.Errorf("write the crowd's commands: %w", err)
	}
	v, err := b.ask(ctx, false, "crowd", strconv.Itoa(crowd), file, "/run/netns/"+serverNS)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", s.name, err)
	}
	for _, pid := range v[1:] {
		end(int(pid))
	}
	return v[0] / 1e6 / crowd, nil
}

// end kills a server that the generator started and waits until it is gone;
// the generator has gone, so it is a child of this namespace's init.
func end(pid int) {
	if p, err := os.FindProcess(pid); err == nil {
		_ = p.Kill()
	}
	for {
		if _, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err != nil {
			return
		}
	}
}

func memory(ctx context.Context, b *bed, o options, k *book, servers []server) error {
	for n, s := range servers {
		cg, read, cgErr := memoryCgroup(fmt.Sprintf("slash32-bench-%d-%d", os.Getpid(), n))
		if cgErr != nil && n == 0 {
			k.notes = append(k.notes, "memory with the kernel's part not measured: "+cgErr.Error())
		}
		err := func() error {
			var cmds []*exec.Cmd
			defer func() {
				for _, c := range cmds {
					stop(c)
				}
				if cg != "" {
					_ = os.Remove(cg)
				}
			}()
			for i := range o.vms {
				c, err := b.start(ctx, s, i, false, cg)
				if err != nil {
					return err
				}
				cmds = append(cmds, c)
			}
			var before, after []float64
			for i, c := range cmds {
				if err := b.ready(ctx, i); err != nil {
					return fmt.Errorf("%s: %w", s.name, err)
				}
				kib, err := privateDirty(c.Process.Pid)
				if err != nil {
					return err
				}
				before = append(before, float64(kib))
			}
			for i, c := range cmds {
				if s.dhcpOnly && i == slowPeers {
					break // the others are like these, and take minutes
				}
				if _, err := b.ask(ctx, false, "rate", guest(i), guestMAC(i), "5000", "4"); err != nil {
					return fmt.Errorf("%s: %w", s.name, err)
				}
				kib, err := privateDirty(c.Process.Pid)
				if err != nil {
					return err
				}
				after = append(after, float64(kib))
			}
			k.add(rowDirty, "KiB", s.name, median(after))
			k.add(rowGrowth, "%", s.name, 100*(median(after)-median(before))/median(before))
			if cgErr == nil {
				kib, err := read()
				if err != nil {
					return err
				}
				k.add(rowAll, "KiB", s.name, float64(kib)/float64(o.vms))
			}
			t, err := threads(cmds[0].Process.Pid)
			if err != nil {
				return err
			}
			k.add(rowThreads, "", s.name, float64(t))
			return nil
		}()
		if err != nil {
			return err
		}
	}
	return nil
}

// traffic measures what a responder costs a guest that sends other things.
func traffic(ctx context.Context, b *bed, o options, k *book, _ []server) error {
	const frames = "400000"
	args := []string{"blast", guest(0), guestMAC(0), frames, "02:73:6c:33:32:01"}
	for range o.rounds {
		alone, err := b.ask(ctx, true, args...)
		if err != nil {
			return err
		}
		for _, s := range []server{cServer, ours} {
			err := func() error {
				cmd, err := b.start(ctx, s, 0, true, "")
				if err != nil {
					return err
				}
				defer stop(cmd)
				if err := b.ready(ctx, 0); err != nil {
					return err
				}
				t0, err := cpuTicks(cmd.Process.Pid)
				if err != nil {
					return err
				}
				begin := time.Now()
				with, err := b.ask(ctx, true, args...)
				if err != nil {
					return err
				}
				t1, err := cpuTicks(cmd.Process.Pid)
				if err != nil {
					return err
				}
				k.add(rowBlast, "%", s.name, 100*(alone[1]/with[1]-1))
				k.add(rowIdle, "% of a core", s.name, float64(t1-t0)/time.Since(begin).Seconds())
				return nil
			}()
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// rtnl measures while another namespace removes bridges, each of which holds
// the kernel's RTNL lock for a long time.
func rtnl(ctx context.Context, b *bed, o options, k *book, servers []server) error {
	const noise = 60
	for range max(1, o.rounds/2) {
		for _, s := range servers {
			err := func() error {
				if err := command(ctx, "ip", "netns", "add", "noise"); err != nil {
					return err
				}
				defer func() { _ = command(ctx, "ip", "netns", "del", "noise") }()
				var add, del strings.Builder
				for i := range noise {
					fmt.Fprintf(&add, "link add n%d type bridge\nlink add p%d type veth peer name q%d\nlink set p%d master n%d up\n", i, i, i, i, i)
					fmt.Fprintf(&del, "link del n%d\nlink del p%d\n", i, i)
				}
				if err := batch(ctx, "noise", add.String()); err != nil {
					return err
				}
				cmd, err := b.start(ctx, s, 0, false, "")
				if err != nil {
					return err
				}
				defer stop(cmd)
				if err := b.ready(ctx, 0); err != nil {
					return err
				}
				done := make(chan error, 1)
				go func() { done <- batch(ctx, "noise", del.String()) }()
				worst, boot, rounds := 0.0, 0.0, 0
				for running := true; running; rounds++ {
					select {
					case err := <-done:
						if err != nil {
							return err
						}
						running = false
						continue
					default:
					}
					ex, err := b.ask(ctx, false, "exchange", guest(0), guestMAC(0), "200")
					if err != nil {
						return fmt.Errorf("%s: %w", s.name, err)
					}
					worst = max(worst, ex[3]/1e6)
					ms, err := b.first(ctx, s, 1)
					if err != nil {
						return err
					}
					boot = max(boot, ms)
				}
				if rounds < 2 {
					return fmt.Errorf("RTNL was not busy long enough to measure: %d rounds", rounds)
				}
				k.add(rowRTNL, "ms", s.name, worst)
				k.add(rowRTNLBoot, "ms", s.name, boot)
				return nil
			}()
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func kill(ctx context.Context, b *bed, o options, k *book, _ []server) error {
	for range o.rounds {
		for _, s := range []server{cServer, ours} {
			var cmds []*exec.Cmd
			for i := range crowd {
				c, err := b.start(ctx, s, i, false, "")
				if err != nil {
					return err
				}
				cmds = append(cmds, c)
			}
			for i := range crowd {
				if err := b.ready(ctx, i); err != nil {
					return fmt.Errorf("%s: %w", s.name, err)
				}
			}
			begin := time.Now()
			for _, c := range cmds {
				_ = c.Process.Kill()
			}
			for _, c := range cmds {
				_ = c.Wait()
			}
			k.add(rowKill, "ms", s.name, float64(time.Since(begin).Microseconds())/1e3)
		}
	}
	return nil
}
