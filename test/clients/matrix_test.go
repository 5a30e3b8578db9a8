package clients

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
)

// column is one thing that is checked of every client.
type column int

// The columns of the matrix.
const (
	lease     column = iota // the address and the length of its prefix
	route                   // the default route and the one to the gateway
	neighbour               // the gateway's MAC, learned by the guest's own question
	renew                   // RENEWING, by unicast where the protocol has it so
	rebind                  // REBINDING
	reboot                  // INIT-REBOOT or CONFIRM with the right address
	wrong                   // the same with an address that is not the guest's any more
	release                 // RELEASE
	settings                // resolvers, MTU and two search domains

	numColumns = iota
)

var columnNames = [numColumns]string{"lease", "route", "gateway", "renew", "rebind", "reboot", "wrong", "release", "settings"}

// row is one client as the matrix shows it.
type row struct {
	name string
	pkg  string // Debian's package, whose version is shown
	// Why a cell is empty, and what a good one does not say by itself.
	without, remark map[column]string
}

const (
	noLeaseFile = "keeps no lease over a restart: it starts with DISCOVER"
	oneShot     = "ends when it has the lease: it does not renew, rebind or release"
	loadTest    = "plays a relay agent that counts answers and configures nothing; \"lease\" is 1200 exchanges in 60 s without a loss, beside a flood with random chaddr, DUID and client identifiers"
	noSearch    = "Debian's script for udhcpc writes the domain and no search list"
	atRenewal   = "refused when it renews"
	routeMTU    = "the MTU is that of its routes, not the interface's"
	noConfirm   = "starts with SOLICIT after a reboot, never with CONFIRM"
	noRelease   = "sends no RELEASE"
	quoted121   = "from option 3 and the mask: dracut 059 quotes the routes of option 121 into one word and cannot read it"
	byState     = "written to /run/systemd/netif, where systemd-resolved reads it"
)

// rows are all that have to be there.
var rows = []row{
	{name: "ISC dhclient", pkg: "isc-dhcp-client"},
	{name: "ISC dhclient without 121", pkg: "isc-dhcp-client"},
	{name: "ISC dhclient -6", pkg: "isc-dhcp-client"},
	{name: "dhcpcd", pkg: "dhcpcd-base", remark: map[column]string{settings: routeMTU}},
	{name: "dhcpcd IPv6", pkg: "dhcpcd-base"},
	{name: "udhcpc -O 121", pkg: "busybox-static",
		without: map[column]string{reboot: noLeaseFile},
		remark:  map[column]string{wrong: atRenewal, settings: noSearch}},
	{name: "udhcpc", pkg: "busybox-static",
		without: map[column]string{reboot: noLeaseFile},
		remark:  map[column]string{wrong: atRenewal, settings: noSearch}},
	{name: "systemd-networkd", pkg: "systemd", remark: map[column]string{settings: byState}},
	{name: "systemd-networkd IPv6", pkg: "systemd",
		without: map[column]string{reboot: noConfirm, wrong: noConfirm, release: noRelease},
		remark:  map[column]string{settings: byState}},
	{name: "NetworkManager", pkg: "network-manager", without: map[column]string{release: noRelease}},
	{name: "NetworkManager IPv6", pkg: "network-manager", without: map[column]string{reboot: noConfirm, wrong: noConfirm, release: noRelease}},
	{name: "klibc ipconfig (initramfs-tools)", pkg: "klibc-utils",
		without: map[column]string{renew: oneShot, rebind: oneShot, reboot: noLeaseFile, wrong: noLeaseFile, release: oneShot}},
	{name: "dracut network-legacy", pkg: "dracut-network",
		without: map[column]string{reboot: noLeaseFile, wrong: noLeaseFile, release: noRelease},
		remark:  map[column]string{route: quoted121}},
	{name: "perfdhcp -4", pkg: "kea-admin",
		without: map[column]string{route: loadTest, neighbour: loadTest, renew: loadTest, rebind: loadTest, reboot: loadTest, wrong: loadTest, release: loadTest, settings: loadTest}},
	{name: "perfdhcp -6", pkg: "kea-admin",
		without: map[column]string{route: loadTest, neighbour: loadTest, renew: loadTest, rebind: loadTest, reboot: loadTest, wrong: loadTest, release: loadTest, settings: loadTest}},
}

// matrix is what the tests have recorded.
type matrix struct {
	mu    sync.Mutex
	cells map[string]*[numColumns]cell
}

// cell counts the checks that were begun and those that passed.
type cell struct {
	begun, passed int
	shows         string
}

var table = matrix{cells: map[string]*[numColumns]cell{}}

// record is one test's hand on a row.
type record struct {
	t    *testing.T
	name string
}

func (m *matrix) row(t *testing.T, name string) record {
	t.Helper()
	if !slices.ContainsFunc(rows, func(r row) bool { return r.name == name }) {
		t.Fatalf("the matrix has no row %q", name)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cells[name] == nil {
		m.cells[name] = &[numColumns]cell{}
	}
	return record{t, name}
}

// check runs f, which fails the test when the client does not do what the column
// stands for. A cell is good when all of its checks have come through.
func (r record) check(c column, f func()) { r.shows(c, "ok", f) }

// shows is check with the word that stands in a good cell.
func (r record) shows(c column, word string, f func()) {
	r.t.Helper()
	table.mu.Lock()
	at := &table.cells[r.name][c]
	at.begun++
	table.mu.Unlock()
	f()
	if r.t.Failed() {
		return
	}
	table.mu.Lock()
	at.passed, at.shows = at.passed+1, word
	table.mu.Unlock()
}

// result is one row as it is written to clients.json.
type result struct {
	Client  string            `json:"client"`
	Version string            `json:"version"`
	Cells   map[string]string `json:"cells"` // by column: what it shows, "FAILED", "missing" or "-"
	Notes   map[string]string `json:"notes,omitempty"`
}

func (m *matrix) result(r row) result {
	out := result{Client: r.name, Version: packageVersion(r.pkg), Cells: map[string]string{}, Notes: map[string]string{}}
	for c := range column(numColumns) {
		var at cell
		if cells := m.cells[r.name]; cells != nil {
			at = cells[c]
		}
		name := columnNames[c]
		out.Cells[name] = verdict(at, r.without[c] != "")
		if note := r.without[c] + r.remark[c]; note != "" {
			out.Notes[name] = note
		}
	}
	return out
}

func verdict(at cell, without bool) string {
	switch {
	case without && at.begun == 0:
		return "-"
	case without:
		return "FAILED" // it does apply
	case at.begun == 0:
		return "missing"
	case at.passed < at.begun:
		return "FAILED"
	}
	return at.shows
}

// packageVersion is the version of an installed Debian package.
func packageVersion(name string) string {
	out, err := exec.Command("dpkg-query", "-W", "-f", "${Version}", name).Output()
	if err != nil {
		return "unknown"
	}
	return string(out)
}

// print writes the matrix into dir, as text and as JSON, and to standard output.
// The error of a whole run names the cells that are not good; of one that was not
// meant to be whole, the rows that no test has touched are left out.
func (m *matrix) print(dir string, whole bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var results []result
	for _, r := range rows {
		if whole || m.cells[r.name] != nil {
			results = append(results, m.result(r))
		}
	}
	if len(results) == 0 {
		return nil
	}
	text, bad := format(results)
	encoded, err := json.MarshalIndent(results, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the matrix: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("write the matrix: %w", err)
	}
	if err := errors.Join(
		os.WriteFile(filepath.Join(dir, "clients.txt"), []byte(text), 0o644),
		os.WriteFile(filepath.Join(dir, "clients.json"), append(encoded, '\n'), 0o644),
	); err != nil {
		return fmt.Errorf("write the matrix: %w", err)
	}
	fmt.Print(text)
	if whole && len(bad) > 0 {
		return fmt.Errorf("not good: %s", strings.Join(bad, ", "))
	}
	return nil
}

// format is the matrix as text, with numbered notes, and the cells that are bad.
func format(results []result) (text string, bad []string) {
	var out strings.Builder
	var notes []string
	number := func(note string) string {
		if note == "" {
			return ""
		}
		i := slices.Index(notes, note)
		if i < 0 {
			i, notes = len(notes), append(notes, note)
		}
		return fmt.Sprintf(" [%d]", i+1)
	}
	w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "client\tversion\t%s\n", strings.Join(columnNames[:], "\t"))
	for _, r := range results {
		fmt.Fprintf(w, "%s\t%s", r.Client, r.Version)
		for _, c := range columnNames {
			fmt.Fprintf(w, "\t%s%s", r.Cells[c], number(r.Notes[c]))
			if s := r.Cells[c]; s == "FAILED" || s == "missing" {
				bad = append(bad, r.Client+": "+c+" "+s)
			}
		}
		fmt.Fprintln(w)
	}
	_ = w.Flush()
	for i, note := range notes {
		fmt.Fprintf(&out, "[%d] %s\n", i+1, note)
	}
	return out.String(), bad
}

// A matrix that lacks something, or has something red, is an error.
func TestMatrixSaysWhatIsBad(t *testing.T) {
	for _, c := range []struct {
		at      cell
		without bool
		want    string
	}{
		{cell{}, false, "missing"},
		{cell{}, true, "-"},
		{cell{begun: 1, passed: 1, shows: "/32"}, true, "FAILED"},
		{cell{begun: 1}, false, "FAILED"},
		{cell{begun: 2, passed: 1, shows: "ok"}, false, "FAILED"},
		{cell{begun: 2, passed: 2, shows: "ok"}, false, "ok"},
	} {
		if got := verdict(c.at, c.without); got != c.want {
			t.Errorf("%+v, without %v: %s, want %s", c.at, c.without, got, c.want)
		}
	}
	cells := map[string]string{}
	for _, c := range columnNames {
		cells[c] = "ok"
	}
	cells["renew"] = "FAILED"
	text, bad := format([]result{{Client: "a", Version: "1", Cells: cells, Notes: map[string]string{"lease": "why"}}})
	if !slices.Equal(bad, []string{"a: renew FAILED"}) || !strings.Contains(text, "[1] why\n") || !strings.Contains(text, "ok [1]") {
		t.Errorf("%q\n%s", bad, text)
	}
}
