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

// column is one thing that is checked of every client, as the matrix names it.
type column string

// row is one client as the matrix shows it.
type row struct {
	name string
	pkg  string // Debian's package, whose version is shown
	// Why a cell is empty, and what a good one does not say by itself.
	without, remark map[column]string
}

// matrix is what the tests have recorded.
type matrix struct {
	file    string // the name, without its end, of what it is written to
	columns []column
	rows    []row // all that have to be there

	mu    sync.Mutex
	cells map[string]map[column]*cell // by row
}

// cell counts the checks that were begun and those that passed.
type cell struct {
	begun, passed int
	shows         string
}

// record is one test's hand on a row.
type record struct {
	t    *testing.T
	m    *matrix
	name string
}

func (m *matrix) row(t *testing.T, name string) record {
	t.Helper()
	if !slices.ContainsFunc(m.rows, func(r row) bool { return r.name == name }) {
		t.Fatalf("the matrix has no row %q", name)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cells == nil {
		m.cells = map[string]map[column]*cell{}
	}
	if m.cells[name] == nil {
		m.cells[name] = map[column]*cell{}
		for _, c := range m.columns {
			m.cells[name][c] = &cell{}
		}
	}
	return record{t, m, name}
}

// check runs f, which fails the test when the client does not do what the column
// stands for. A cell is good when all of its checks have come through.
func (r record) check(c column, f func()) { r.shows(c, "ok", f) }

// shows is check with the word that stands in a good cell.
func (r record) shows(c column, word string, f func()) {
	r.t.Helper()
	r.m.mu.Lock()
	at := r.m.cells[r.name][c]
	at.begun++
	r.m.mu.Unlock()
	f()
	if r.t.Failed() {
		return
	}
	r.m.mu.Lock()
	at.passed, at.shows = at.passed+1, word
	r.m.mu.Unlock()
}

// result is one row as it is written to the matrix's JSON.
type result struct {
	Client  string            `json:"client"`
	Version string            `json:"version"`
	Cells   map[column]string `json:"cells"` // what it shows, "FAILED", "missing" or "-"
	Notes   map[column]string `json:"notes,omitempty"`
}

func (m *matrix) result(r row) result {
	out := result{Client: r.name, Version: packageVersion(r.pkg), Cells: map[column]string{}, Notes: map[column]string{}}
	for _, c := range m.columns {
		var at cell
		if cells := m.cells[r.name]; cells != nil {
			at = *cells[c]
		}
		out.Cells[c] = verdict(at, r.without[c] != "")
		if note := r.without[c] + r.remark[c]; note != "" {
			out.Notes[c] = note
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

// kernelRelease stands for a package where the kernel itself is the client.
const kernelRelease = "the kernel"

// packageVersion is the version of an installed Debian package.
func packageVersion(name string) string {
	if name == kernelRelease {
		release, err := os.ReadFile("/proc/sys/kernel/osrelease")
		if err != nil {
			return "unknown"
		}
		return strings.TrimSpace(string(release))
	}
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
	for _, r := range m.rows {
		if whole || m.cells[r.name] != nil {
			results = append(results, m.result(r))
		}
	}
	if len(results) == 0 {
		return nil
	}
	text, bad := format(m.columns, results)
	encoded, err := json.MarshalIndent(results, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the matrix: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("write the matrix: %w", err)
	}
	if err := errors.Join(
		os.WriteFile(filepath.Join(dir, m.file+".txt"), []byte(text), 0o644),
		os.WriteFile(filepath.Join(dir, m.file+".json"), append(encoded, '\n'), 0o644),
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
func format(columns []column, results []result) (text string, bad []string) {
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
	fmt.Fprint(w, "client\tversion")
	for _, c := range columns {
		fmt.Fprintf(w, "\t%s", c)
	}
	fmt.Fprintln(w)
	for _, r := range results {
		fmt.Fprintf(w, "%s\t%s", r.Client, r.Version)
		for _, c := range columns {
			fmt.Fprintf(w, "\t%s%s", r.Cells[c], number(r.Notes[c]))
			if s := r.Cells[c]; s == "FAILED" || s == "missing" {
				bad = append(bad, fmt.Sprintf("%s: %s %s", r.Client, c, s))
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
	cells := map[column]string{}
	for _, c := range columns4 {
		cells[c] = "ok"
	}
	cells[renew] = "FAILED"
	text, bad := format(columns4, []result{{Client: "a", Version: "1", Cells: cells, Notes: map[column]string{leased: "why"}}})
	if !slices.Equal(bad, []string{"a: renew FAILED"}) || !strings.Contains(text, "[1] why\n") || !strings.Contains(text, "ok [1]") {
		t.Errorf("%q\n%s", bad, text)
	}
}
