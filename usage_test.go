// These tests are about what the operator is told of quotas: by a daemon that runs,
// and by what one has left behind.

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestUserUsage(t *testing.T) {
	t.Parallel()
	p, b, file, _ := administered(t, "")
	b.user(t, "bob", fmt.Sprintf("quota_bytes = \"1kB\"\nquota_files = 10\nhome = %q\n", filepath.Join(b.dir, "bob")))
	b.user(t, "carol", fmt.Sprintf("quota = \"filesystem\"\nhome = %q\n", filepath.Join(b.dir, "carol")))
	says(t, exitOK, "Reloaded.\n", "", "reload", "--config", file)
	c := p.dial("control")
	c.want("220 *")
	bob := c.frames().enter("bob")
	bob.frame(frameRequest, `{"do":"put","path":"f","size":504}`)
	bob.wantFrame(frameAnswer, `{"code":150,*`)
	bob.frame(frameData, strings.Repeat("x", 504))
	bob.frame(frameEnd, "")
	bob.wantFrame(frameAnswer, `{"code":226,*`)

	usage := func(args ...string) (lines []usageLine, complaint string) {
		t.Helper()
		code, out, errs := cli(t, append([]string{"user", "usage", "--json", "--config", file}, args...)...)
		if err := json.Unmarshal([]byte(out), &lines); code != exitOK || err != nil {
			t.Fatalf("%d, %q, %q, %v", code, out, errs, err)
		}
		return lines, errs
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(b.dir, &st); err != nil {
		t.Fatal(err)
	}
	for _, running := range []bool{true, false} {
		lines, complaint := usage()
		if len(lines) != 3 || (complaint == "") != running || !running && !strings.HasPrefix(complaint, "berth user: berth does not run") {
			t.Fatalf("running %v: %+v, %q", running, lines, complaint)
		}
		ann, bobs, carol := lines[0], lines[1], lines[2]
		if ann.User != "ann" || ann.State != usageCounted || ann.Bytes != 0 || ann.Percent != nil || ann.Home != b.home {
			t.Errorf("running %v: %+v", running, ann)
		}
		if bobs.State != usageCounted || !bobs.Exact || bobs.Bytes != 504 || bobs.Files != 1 || bobs.QuotaBytes != 1000 || bobs.QuotaFiles != 10 || bobs.Percent == nil || *bobs.Percent != 50.4 {
			t.Errorf("running %v: %+v", running, bobs)
		}
		if carol.State != usageFilesystem || carol.QuotaBytes != int64(st.Blocks)*int64(st.Bsize) || carol.Bytes <= 0 || carol.Bytes > carol.QuotaBytes {
			t.Errorf("running %v: %+v", running, carol)
		}
		if one, _ := usage("bob"); len(one) != 1 || one[0].User != "bob" || one[0].Bytes != 504 {
			t.Errorf("running %v: %+v", running, one)
		}
		_, out, _ := cli(t, "user", "usage", "--sort", "used", "--config", file)
		rows := strings.Split(squeezed(out), "\n")
		if len(rows) != 5 || rows[0] != "USER USED QUOTA USE% FILES QUOTA USE% STATE" || !strings.HasPrefix(rows[1], "carol ") || rows[2] != "bob 504 B 1000 B 50% 1 10 10% counted" || rows[3] != "ann 0 B - - 0 - - counted" {
			t.Errorf("running %v: %q", running, rows)
		}
		says(t, exitFailed, "", "berth user: *here is no user *dan*\n", "user", "usage", "dan", "--config", file)
		if running {
			bob.do(`{"do":"quotas"}`, 550, "denied") // what others store is not his to know
			bob.do(`{"do":"quit"}`, 221, "")
			p.cmd.Process.Signal(syscall.SIGTERM)
			p.ended(exitOK)
		}
	}

	// After a crash the figures are told, and that they are in doubt.
	state := filepath.Join(b.dir, "state")
	kept := filepath.Join(state, ledgerName)
	entries, _, err := readLedger(kept)
	if err != nil {
		t.Fatal(err)
	}
	if err := (&ledger{dir: state}).write(entries, false); err != nil {
		t.Fatal(err)
	}
	if lines, complaint := usage("bob"); lines[0].Exact || lines[0].Bytes != 504 || !strings.Contains(complaint, "may be off") {
		t.Errorf("after a crash: %+v, %q", lines, complaint)
	}
	if err := os.WriteFile(kept, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	says(t, exitFailed, "", "berth user: "+kept+": *\n", "user", "usage", "--config", file)
	if err := os.Remove(kept); err != nil {
		t.Fatal(err)
	}
	if lines, complaint := usage("bob"); lines[0].State != usageUnknown || lines[0].Percent != nil || !strings.Contains(complaint, "left no ledger") {
		t.Errorf("without a ledger: %+v, %q", lines, complaint)
	}
}
