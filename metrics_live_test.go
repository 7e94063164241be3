package main

// What a scrape of a running server tells: bytes while they move, by every way that they
// go; what waits; whose series end; and that nothing holds it up. Names, labels and the
// format are metrics_test.go's.

import (
	"bytes"
	"compress/zlib"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestBytesCountWhileTheyMove holds transfers in their middle, by every way that bytes
// go, and looks. Their end is the other tests' matter.
func TestBytesCountWhileTheyMove(t *testing.T) {
	const part = 100_000 // less than any buffer; what is left comes never
	b := newFTPBox(t, attackListen, "sessions = 100\n")
	noise := testBytes(16 << 20) // which MODE Z does not make small
	if err := os.WriteFile(filepath.Join(b.home, "noise"), noise, 0o644); err != nil {
		t.Fatal(err)
	}
	addrs := b.serveReal(t)
	control := func(secure bool) *ftpClient {
		c := b.dialReal(t, addrs[0])
		if !secure {
			return c.login()
		}
		c.want("220 *")
		cfg := clientTLS()
		c.cmd("AUTH TLS", "234 *")
		c.startTLS(cfg)
		c.cmd("USER ann", "331 *")
		c.cmd("PASS secret", "230 *")
		c.cmd("PBSZ 0", "200 *")
		c.cmd("PROT P", "200 *")
		c.private = cfg
		return c
	}
	// begin is the data connection of a command.
	begin := func(c *ftpClient, active bool, command string) net.Conn {
		var d net.Conn
		if active {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			c.cmd(fmt.Sprintf("EPRT |1|127.0.0.1|%d|", ln.Addr().(*net.TCPAddr).Port), "200 *")
			c.send(command + "\r\n")
			if d, err = ln.Accept(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { d.Close() })
			c.want("150 *")
		} else {
			c.cmd("EPSV", "229 *")
			d = c.open()
			c.cmd(command, "150 *")
		}
		if c.private != nil {
			d = tls.Client(d, c.private)
		}
		d.SetDeadline(time.Now().Add(replyTime))
		return d
	}
	for _, tt := range []struct {
		name           string
		secure, active bool
		frames         bool
		zipped         bool
		digest         bool
	}{
		{name: "passive"}, {name: "active", active: true}, {name: "TLS", secure: true}, {name: "MODE Z", zipped: true},
		{name: "digest", digest: true}, {name: "frames", frames: true}, {name: "frames under TLS", secure: true, frames: true},
	} {
		protocol := map[bool]string{false: "ftp", true: "ftps"}[tt.secure]
		if tt.frames {
			protocol = "frames"
		}
		counted := func(direction string) float64 {
			return b.metric(t, "berth_transfer_bytes_total", direction, protocol, "ann")
		}
		running := func(direction string, n float64) {
			t.Helper()
			waitUntil(t, fmt.Sprintf("%v of %s run", n, direction), func() bool { return b.metric(t, "berth_transfers_active", direction) == n })
		}
		if tt.digest {
			cfg := *b.srv.config()
			cfg.Transfer.Digest = "always"
			was := b.srv.current.Swap(&cfg)
			defer b.srv.current.Store(was)
		}
		t.Run(tt.name+" upload", func(t *testing.T) {
			if tt.active {
				return // once it is open, it is as the passive one
			}
			before := counted("upload")
			c := control(tt.secure)
			var end func()
			if tt.frames {
				f := c.frames()
				f.frame(frameRequest, fmt.Sprintf(`{"do":"put","path":"up %s","size":%d}`, tt.name, 2*part))
				f.wantFrame(frameAnswer, "*")
				// Half of a frame, as of one that is on its way.
				half := appendFrame(nil, frameData, noise[:2*part])
				f.send(string(half[:frameHeader+part]))
				end = func() { f.conn.Close() }
			} else {
				if tt.zipped {
					c.cmd("MODE Z", "200 *")
				}
				d := begin(c, tt.active, "STOR up "+tt.name)
				var w io.Writer = d
				if tt.zipped {
					z := zlib.NewWriter(d)
					z.Write(noise[:part])
					z.Flush()
				} else {
					w.Write(noise[:part])
				}
				end = func() { d.Close(); c.want("*") }
			}
			waitUntil(t, "it is counted", func() bool { return counted("upload")-before == part })
			if got := b.metric(t, "berth_staging_bytes"); got != part {
				t.Errorf("%v bytes are in uploads under way; want %v", got, part)
			}
			running("upload", 1)
			end()
			running("upload", 0)
			waitUntil(t, "nothing is under way", func() bool { return b.metric(t, "berth_staging_bytes") == 0 })
		})
		t.Run(tt.name+" download", func(t *testing.T) {
			before := counted("download")
			c := control(tt.secure)
			var end func()
			if tt.frames {
				f := c.frames()
				f.frame(frameRequest, `{"do":"get","path":"noise"}`)
				end = func() { f.conn.Close() }
			} else {
				if tt.zipped {
					c.cmd("MODE Z", "200 *")
				}
				d := begin(c, tt.active, "RETR noise")
				if _, err := io.ReadFull(d, make([]byte, part)); err != nil {
					t.Fatal(err)
				}
				end = func() { d.Close(); c.want("*") }
			}
			waitUntil(t, "it is counted", func() bool { return counted("download")-before >= part })
			running("download", 1)
			if got := counted("download") - before; got >= float64(len(noise)) {
				t.Errorf("%v bytes are counted, which is all of them", got)
			}
			end()
			running("download", 0)
		})
	}
}

// TestPanicsDoNotRunForEver: a transfer that ends by a bug of ours is over, whether its
// data connection was open yet or not, and by whichever protocol it came.
func TestPanicsDoNotRunForEver(t *testing.T) {
	ended := func(t *testing.T, b *ftpBox, direction string) {
		t.Helper()
		b.wantMetric(t, 1, "berth_panics_total")
		b.wantMetric(t, 0, "berth_transfers_active")
		b.wantMetric(t, 1, "berth_transfers_total", direction, "error", "ann")
	}
	for verb, direction := range map[string]string{"RETR a": "download", "STOR b": "upload"} {
		t.Run(verb, func(t *testing.T) {
			inBox(t, "", "", func(t *testing.T, b *ftpBox) {
				b.put(t, "a", "content")
				c := b.dial(t).login()
				b.srv.ports.dial = func(context.Context, netip.Addr, netip.AddrPort) (net.Conn, error) { panic("not open yet") }
				c.cmd("PORT 127,0,0,1,200,200", "200 *")
				c.cmd(verb, "421 *")
				c.closed()
				ended(t, b, direction)
			})
		})
	}
	t.Run("put", func(t *testing.T) {
		inBox(t, "", "", func(t *testing.T, b *ftpBox) {
			f := b.dialFrames(t).enter()
			f.frame(frameRequest, `{"do":"put","path":"b"}`)
			f.wantFrame(frameAnswer, "*")
			synctest.Wait()
			for _, s := range b.srv.everySession() {
				s.xfer.count = func(int64) { panic("in the middle") }
			}
			f.frame(frameData, "content")
			f.wantEnd(421, "")
			f.closed()
			ended(t, b, "upload")
		})
	})
}

// TestRemovedUsersSeriesEnd: a user's name is a label as long as he is one.
func TestRemovedUsersSeriesEnd(t *testing.T) {
	inBox(t, "", "", func(t *testing.T, b *ftpBox) {
		b.user(t, "bob", "quota_bytes = \"1B\"\nhome = \""+filepath.Join(b.dir, "bob")+"\"\n")
		c := b.dial(t)
		c.want("220 *")
		c.cmd("USER bob", "331 *")
		c.cmd("PASS secret", "230 *")
		c.store("STOR a", "too much")
		c.fetch("LIST")
		b.put(t, "x", "")
		ann := b.dial(t).login()
		ann.fetch("RETR x")
		for _, name := range []string{"berth_transfers_total", "berth_transfer_bytes_total", "berth_quota_rejected_total", "berth_quota_bytes", "berth_quota_used_bytes"} {
			if !regexp.MustCompile(`\n` + name + `\{[^}]*user="bob"`).MatchString(b.scrape(t)) {
				t.Errorf("no %s of bob", name)
			}
		}
		if err := os.Remove(filepath.Join(b.dir, "users.d", "bob.toml")); err != nil {
			t.Fatal(err)
		}
		if err := b.srv.reload(); err != nil {
			t.Fatal(err)
		}
		<-c.over
		scrape := b.scrape(t)
		if strings.Contains(scrape, `"bob"`) {
			t.Errorf("bob is still there:\n%s", ownLines(scrape))
		}
		if !strings.Contains(scrape, `berth_transfers_total{direction="download",protocol="ftp",result="ok",user="ann"} 1`) {
			t.Error("what is ann's has gone with it")
		}
	})
}

// scrape is the text of /metrics.
func (b *ftpBox) scrape(t testing.TB) string {
	t.Helper()
	a := &httpAnswer{status: httpOK}
	(&scrapeHandler{gather: b.srv.metrics.gather, inFlight: make(chan struct{}, 1)}).answer(a, &httpRequest{url: &url.URL{Path: "/metrics"}})
	if a.status != httpOK {
		t.Fatalf("%d %s", a.status, a.body.String())
	}
	return a.body.String()
}

// TestFirstScrape: before anything has happened there is each family of the contract, and
// what an alert waits for is at 0, or increase() would not see the first of it.
func TestFirstScrape(t *testing.T) {
	inBox(t, "commands.snap.run = [\"/bin/true\"]\n", "", func(t *testing.T, b *ftpBox) {
		scrape := b.scrape(t)
		contract, err := os.ReadFile("metrics_test.go")
		if err != nil {
			t.Fatal(err)
		}
		_, contract, _ = bytes.Cut(contract, []byte("func TestScrapeHasContractNames("))
		contract, _, _ = bytes.Cut(contract, []byte("\n}\n"))
		names := regexp.MustCompile(`"(berth_\w+)"`).FindAllSubmatch(contract, -1)
		if len(names) < 22 {
			t.Fatalf("the contract has %d names", len(names))
		}
		for _, name := range names {
			if !strings.Contains(scrape, "# TYPE "+string(name[1])+" ") {
				t.Errorf("no %s", name[1])
			}
		}
		for _, want := range []string{
			`berth_quota_rejected_total{user="ann"}`, `berth_commands_total{command="snap",result="exited"}`, `berth_commands_total{command="shell",result="exited"}`,
			`berth_command_duration_seconds_count{command="snap"}`, `berth_datagrams_total{result="ok",service="time"}`,
			`berth_control_commands_total{code_class="2xx",verb="STOR"}`, `berth_tls_data_sessions_total{result="resumed"}`,
			`berth_data_connections_total{mode="passive",result="no_data_connection"}`, `berth_transfer_duration_seconds_count{direction="upload",protocol="ftps"}`,
			`berth_http_requests_total{code="404",page="other"}`, `berth_sessions_total{protocol="ftp",result="refused"}`,
		} {
			if !strings.Contains(scrape, "\n"+want+" 0\n") {
				t.Errorf("no %s at 0", want)
			}
		}
		// A user of a moment ago, and a transfer that runs.
		b.user(t, "bob", "")
		if err := b.srv.reload(); err != nil {
			t.Fatal(err)
		}
		c := b.dial(t).login()
		c.cmd("EPSV", "229 *")
		data := c.open()
		c.cmd("STOR a", "150 *")
		scrape = b.scrape(t)
		for _, want := range []string{
			`berth_quota_rejected_total{user="bob"}`, `berth_transfers_total{direction="upload",protocol="ftp",result="ok",user="ann"}`,
			`berth_transfer_bytes_total{direction="upload",protocol="ftp",user="ann"}`,
		} {
			if !strings.Contains(scrape, "\n"+want+" 0\n") {
				t.Errorf("no %s at 0", want)
			}
		}
		data.Close()
		c.want("226 *")
	})
	inBox(t, "metrics.per_user = false\n", "", func(t *testing.T, b *ftpBox) {
		scrape := b.scrape(t)
		for _, want := range []string{"berth_quota_rejected_total", `berth_transfers_total{direction="upload",protocol="ftps",result="ok"}`, `berth_transfer_bytes_total{direction="download",protocol="frames"}`} {
			if !strings.Contains(scrape, "\n"+want+" 0\n") {
				t.Errorf("no %s at 0", want)
			}
		}
	})
}

// TestTransfersThatDoNotBegin are counted with the others: a camera that may not write any
// more stores no more than one whose link breaks.
func TestTransfersThatDoNotBegin(t *testing.T) {
	inBox(t, "", "quota_bytes = \"100B\"\n", func(t *testing.T, b *ftpBox) {
		b.user(t, "eve", "permissions = [\"list\"]\n")
		c := b.dial(t).login()
		for _, tt := range []struct{ ask, reply, direction, result string }{
			{"RETR nosuch", "550 *", "download", "refused"},
			{"STOR no/where", "550 *", "upload", "refused"},
			{"APPE no/where", "550 *", "upload", "refused"},
			{"ALLO 101", "200 *", "", ""},
			{"STOR a", "552 *", "upload", "over_quota"},
			{"HASH nosuch", "550 *", "", ""},
			{"DELE nosuch", "550 *", "", ""},
		} {
			before := b.metric(t, "berth_transfers_total", "ann", "ftp", tt.direction, tt.result)
			all := b.metric(t, "berth_transfers_total")
			c.cmd("EPSV", "229 *")
			c.cmd(tt.ask, tt.reply)
			more := 0.0
			if tt.result != "" {
				more = 1
				if got := b.metric(t, "berth_transfers_total", "ann", "ftp", tt.direction, tt.result); got != before+1 {
					t.Errorf("%s: %v transfers that are %s; want %v", tt.ask, got, tt.result, before+1)
				}
			}
			if got := b.metric(t, "berth_transfers_total"); got != all+more {
				t.Errorf("%s: %v transfers; want %v", tt.ask, got, all+more)
			}
		}
		for do, direction := range map[string]string{"RETR": "download", "STOR": "upload"} {
			c := b.dial(t)
			c.want("220 *")
			c.cmd("USER eve", "331 *")
			c.cmd("PASS secret", "230 *")
			c.cmd(do+" a", "550 *")
			b.wantMetric(t, 1, "berth_transfers_total", "eve", direction, "refused")
		}
		if n := strings.Count(b.scrape(t), "_transfer_duration_seconds_count"); n != 6 {
			t.Errorf("%d counts of durations", n)
		}
		if m := regexp.MustCompile(`\nberth_transfer_duration_seconds_count.* [1-9]`).FindString(b.scrape(t)); m != "" {
			t.Errorf("what did not begin took no time: %s", m)
		}
	})
}

// TestNoNamesOfUsers: with per_user = false the names stay, as sums, and no user's does.
func TestNoNamesOfUsers(t *testing.T) {
	inBox(t, "metrics.per_user = false\n", "quota_bytes = \"100B\"\n", func(t *testing.T, b *ftpBox) {
		b.user(t, "bob", "quota_bytes = \"10B\"\nwhen_full = \"rotate\"\nhome = \""+filepath.Join(b.dir, "bob")+"\"\n")
		c := b.dial(t).login()
		c.store("STOR a", "12345")
		c.store("STOR b", strings.Repeat("x", 200))
		scrape := b.scrape(t)
		for _, want := range []string{
			`berth_transfers_total{direction="upload",protocol="ftp",result="ok"} 1`,
			`berth_transfer_bytes_total{direction="upload",protocol="ftp"} `,
			"berth_quota_rejected_total 1", "berth_quota_bytes 110", "berth_quota_used_bytes 5", "berth_quota_used_files 1", "berth_quota_files 0",
		} {
			if !strings.Contains(scrape, "\n"+want) {
				t.Errorf("no %q", want)
			}
		}
		for _, not := range []string{"user=", `"ann"`, `"bob"`, "berth_quota_rotates"} {
			if strings.Contains(ownLines(scrape), not) {
				t.Errorf("%q is there:\n%s", not, ownLines(scrape))
			}
		}
	})
}

// TestCommandDurations: what a client, a transfer or a held-back answer takes is not what
// the command took.
func TestCommandDurations(t *testing.T) {
	inBox(t, "", "", func(t *testing.T, b *ftpBox) {
		b.put(t, "a", "content")
		c := b.dial(t)
		c.want("220 *")
		time.Sleep(10 * time.Second) // nobody asks for anything
		c.cmd("USER ann", "331 *")
		c.cmd("PASS wrong", "530 *") // a second
		c.cmd("USER ann", "331 *")
		c.cmd("PASS secret", "230 *")
		c.cmd("EPSV", "229 *")
		c.send("RETR a\r\n")
		time.Sleep(10 * time.Second)
		drained(t, c.data())
		c.want("150 *", "226 *")
		c.cmd("EPSV", "229 *")
		d := c.data()
		c.cmd("STOR b", "150 *")
		time.Sleep(10 * time.Second)
		d.Close()
		c.want("226 *")
		c.cmd("EPSV", "229 *")
		c.send("LIST\r\n")
		time.Sleep(10 * time.Second)
		drained(t, c.data())
		c.want("150 *", "226 *")
		c.cmd("SIZE a", "213 *")
		c.cmd("NOOP", "200 *")
		f := c.frames()
		f.frame(frameRequest, `{"do":"put","path":"c"}`)
		f.wantFrame(frameAnswer, "*")
		time.Sleep(10 * time.Second)
		f.frame(frameEnd, "")
		f.wantEnd(226, "")
		f.do(`{"do":"list"}`, 226, "")
		f.do(`{"do":"hash","path":"a"}`, 213, "")
		want := map[string]uint64{"login": 4, "transfer": 3, "list": 2, "file": 2, "other": 5}
		families, err := b.srv.metrics.gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, family := range families {
			if family.GetName() != "berth_control_command_duration_seconds" {
				continue
			}
			for _, m := range family.GetMetric() {
				class := m.GetLabel()[0].GetValue()
				if h := m.GetHistogram(); h.GetSampleCount() != want[class] || h.GetSampleSum() > 0.5 {
					t.Errorf("%s: %d in %v s; want %d in next to nothing", class, h.GetSampleCount(), h.GetSampleSum(), want[class])
				} else if h.GetSchema() == 0 && len(h.GetPositiveSpan()) == 0 && h.GetZeroThreshold() == 0 {
					t.Errorf("%s is no native histogram", class)
				}
				delete(want, class)
			}
		}
		if len(want) > 0 {
			t.Errorf("no series of %v", want)
		}
	})
}

// TestWhatWaitsIsTold: the queues of a scrape, one after the other.
func TestWhatWaitsIsTold(t *testing.T) {
	inBox(t, "", "", func(t *testing.T, b *ftpBox) {
		b.put(t, "a", "content")
		release := make(chan struct{})
		b.srv.auth.compute = func(*passwordHash, string) bool { <-release; return true }
		b.srv.auth.gate = newHashGate(1)
		// Two with one password share a hash, and the third waits for its turn.
		var waiting []*ftpClient
		for _, password := range []string{"secret", "secret", "other"} {
			c := b.dial(t)
			c.want("220 *")
			c.cmd("USER ann", "331 *")
			c.send("PASS " + password + "\r\n")
			waiting = append(waiting, c)
			synctest.Wait()
		}
		b.wantMetric(t, 2, "berth_password_hash_queue")
		close(release)
		for _, c := range waiting {
			c.want("230 *")
		}
		b.wantMetric(t, 0, "berth_password_hash_queue")

		for range cap(b.srv.hashing) {
			b.srv.hashing <- struct{}{}
		}
		waiting[0].send("HASH a\r\n")
		waiting[1].send("HASH a\r\n")
		b.wantMetric(t, 2, "berth_digest_queue")
		waiting[1].cmd("ABOR", "426 *", "226 *")
		b.wantMetric(t, 1, "berth_digest_queue")
		for range cap(b.srv.hashing) {
			<-b.srv.hashing
		}
		waiting[0].want("213 *")
		b.wantMetric(t, 0, "berth_digest_queue")
	})
}

// TestLoginFailuresByReason: each reason has its series before anybody fails.
func TestLoginFailuresByReason(t *testing.T) {
	inBox(t, "limits.login_failures = 2\n", "", func(t *testing.T, b *ftpBox) {
		for _, reason := range loginReasons {
			if want := `berth_login_failures_total{reason="` + reason + `"} 0`; !strings.Contains(b.scrape(t), want) {
				t.Errorf("no %s", want)
			}
		}
		b.user(t, "out", "disabled = true\n")
		far := netip.MustParseAddr("192.0.2.9")
		b.srv.auth.verify(t.Context(), "out", "x", testPeer)
		b.srv.auth.verify(t.Context(), "nobody\xff", "x", far)
		b.srv.auth.verify(t.Context(), "ann", "x", far)
		b.srv.auth.verify(t.Context(), "ann", "x", far) // which is banned by now
		for reason, want := range map[string]float64{reasonPassword: 1, reasonUnknown: 1, reasonDisabled: 1, reasonBanned: 1, reasonNotAllowed: 0} {
			b.wantMetric(t, want, "berth_login_failures_total", reason)
		}
	})
}

// TestDrainingIsTold: a scrape says so while the daemon goes down.
func TestDrainingIsTold(t *testing.T) {
	b := newFTPBox(t, "", "")
	b.wantMetric(t, 0, "berth_draining")
	b.srv.drainAt.Store(time.Now().UnixNano())
	b.wantMetric(t, 1, "berth_draining")
}

// TestPartialsAreTold: from the moment an upload is cut off to its end, over a restart,
// and without a walk for a scrape.
func TestPartialsAreTold(t *testing.T) {
	inBox(t, "", "", func(t *testing.T, b *ftpBox) {
		needXattr(t, b.dir)
		cut := func(name string) {
			t.Helper()
			c := b.dial(t).login()
			c.cmd("EPSV", "229 *")
			d := c.data()
			c.cmd("STOR "+name, "150 *")
			io.WriteString(d, "half")
			synctest.Wait()
			c.conn.Close()
			<-c.over
		}
		b.put(t, "old", "content")
		time.Sleep(time.Minute) // until housekeeping has looked
		b.wantMetric(t, 0, "berth_partials")
		if strings.Contains(b.scrape(t), "berth_partials_oldest") {
			t.Error("there is an oldest one of none")
		}
		cut("new")
		b.wantMetric(t, 1, "berth_partials")
		cut("old")
		b.wantMetric(t, 2, "berth_partials")
		var st os.FileInfo
		st, err := os.Stat(filepath.Join(b.home, "new"))
		if err != nil {
			t.Fatal(err)
		}
		b.wantMetric(t, float64(st.ModTime().Unix()), "berth_partials_oldest_timestamp_seconds")
		time.Sleep(time.Minute) // a sweep says the same
		b.wantMetric(t, 2, "berth_partials")

		c := b.dial(t).login()
		c.cmd("RNFR new", "350 *")
		c.cmd("RNTO newer", "250 *")
		b.wantMetric(t, 2, "berth_partials")
		c.cmd("REST 4", "350 *")
		if got := c.store("STOR newer", "whole"); !strings.HasPrefix(got, "226") {
			t.Fatal(got)
		}
		b.wantMetric(t, 1, "berth_partials")
		b.srv.house.save(true)
		again := newLedger(filepath.Join(b.dir, "none"), b.srv.log)
		again.past, again.clean = map[string]ledgerEntry{}, true
		entries, clean, err := readLedger(filepath.Join(b.dir, "state", ledgerName))
		if err != nil || !clean || len(entries) != 1 {
			t.Fatal(entries, clean, err)
		}
		e := entries[0]
		again.past[e.Home] = e
		again.open("ann", e.Home, fileID{1, e.Inode}, e.Born, false)
		if n, _, known := again.partials.report(func(string) bool { return true }); n != 1 || !known {
			t.Errorf("after a restart there are %d, known %v", n, known)
		}
		c.cmd("DELE old", "250 *") // and what was kept aside for it
		b.wantMetric(t, 0, "berth_partials")
		cut("last")
		b.wantMetric(t, 1, "berth_partials")
		c.cmd("DELE last", "250 *")
		b.wantMetric(t, 0, "berth_partials")
	})
}

// TestPartialsGoneDuringASweep: what a sweep has seen and somebody has removed since is
// not there again when the sweep ends; what came since stays.
func TestPartialsGoneDuringASweep(t *testing.T) {
	p := newPartialSet()
	everybody := func(string) bool { return true }
	if _, _, known := p.report(everybody); known {
		t.Error("known, and nobody has looked")
	}
	done := p.walk("ann")
	p.remove(fileID{1, 1})
	p.add("ann", fileID{1, 3}, 300)
	done(map[fileID]int64{{1, 1}: 100, {1, 2}: 200})
	if n, oldest, known := p.report(everybody); n != 2 || oldest.Unix() != 200 || !known {
		t.Error(n, oldest, known)
	}
	again := newPartialSet()
	again.know("ann", strings.Join(p.byUser()["ann"], " ")+" nonsense 1:2 ")
	if n, oldest, known := again.report(everybody); n != 2 || oldest.Unix() != 200 || !known {
		t.Error("kept:", n, oldest, known)
	}
	p.walk("ann")(map[fileID]int64{{1, 3}: 300})
	p.walk("ann")(nil) // which came to nothing
	if n, oldest, _ := p.report(everybody); n != 1 || oldest.Unix() != 300 {
		t.Error(n, oldest)
	}
	if n, _, known := p.report(func(string) bool { return false }); n != 0 || known || p.n.Load() != 0 {
		t.Error("of users who are none any more:", n, known)
	}
}

// TestScrapeOfAHomeThatHangs: a home and a users_dir on a disk that does not answer
// cost a gap, and neither the scrape nor a goroutine each time.
func TestScrapeOfADiskThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var look patientLook
		hang := make(chan struct{})
		began := time.Now()
		for range 5 {
			if _, done := look.do(func() error { <-hang; return nil }); done {
				t.Error("it answered")
			}
		}
		if waited := time.Since(began); waited != lookPatience {
			t.Errorf("five scrapes waited for %v; want one wait of %v", waited, lookPatience)
		}
		close(hang)
		synctest.Wait()
		if err, done := look.do(func() error { return os.ErrInvalid }); err != os.ErrInvalid || !done {
			t.Error(err, done)
		}
	})
}

// TestLedgerHomes counts homes by state.
func TestLedgerHomes(t *testing.T) {
	inBox(t, "", "", func(t *testing.T, b *ftpBox) {
		b.user(t, "later", fmt.Sprintf("quota_bytes = \"5B\"\nhome = %q\n", filepath.Join(b.dir, "later")))
		b.user(t, "kernel", fmt.Sprintf("quota = \"filesystem\"\nhome = %q\n", filepath.Join(b.dir, "kernel")))
		time.Sleep(2 * time.Minute)
		b.wantMetric(t, 2, "berth_ledger_homes", "known")
		b.wantMetric(t, 0, "berth_ledger_homes", "unknown")
		b.wantMetric(t, 0, "berth_ledger_homes", "scanning")
		b.wantMetric(t, 5, "berth_quota_bytes", "later")
		if !strings.Contains(b.scrape(t), `berth_quota_used_bytes{user="later"} 0`) {
			t.Error("who has no home stores nothing")
		}
		b.user(t, "new", fmt.Sprintf("home = %q\nquota_files = 3\n", filepath.Join(b.dir, "new")))
		b.srv.house.walks("new", 1)
		scrape := b.scrape(t)
		for _, want := range []string{`berth_quota_files{user="new"} 3`, `berth_ledger_homes{state="scanning"} 1`} {
			if !strings.Contains(scrape, want) {
				t.Errorf("no %s", want)
			}
		}
		if strings.Contains(scrape, `berth_quota_used_bytes{user="new"}`) {
			t.Error("a home that nobody has looked at has figures")
		}
		b.srv.house.walks("new", -1)
		b.wantMetric(t, 1, "berth_ledger_homes", "unknown")
	})
}

// TestSlowScraper: who reads nothing of a scrape holds up neither the next nor a transfer.
func TestSlowScraper(t *testing.T) {
	b := newFTPBox(t, strings.Replace(realListen, "http = []", "http = [\"127.0.0.1:0\"]", 1), "")
	b.put(t, "a", "content")
	var web string
	for i, addr := range b.serveReal(t) {
		if b.srv.sockets[i].kind == "http" {
			web = addr.String()
		}
	}
	for range 2 * scrapesInFlight {
		c, err := net.Dial("tcp", web)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.(*net.TCPConn).SetReadBuffer(1)
		io.WriteString(c, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
		if _, err := c.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: replyTime}
	r, err := client.Get("http://" + web + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	if page, err := io.ReadAll(r.Body); err != nil || r.StatusCode != 200 || !bytes.Contains(page, []byte("berth_build_info")) {
		t.Errorf("%d, %d bytes, %v", r.StatusCode, len(page), err)
	}
}

// TestPromtool is Prometheus' own word on the golden scrape.
func TestPromtool(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if errors.Is(err, exec.ErrNotFound) {
		t.Skip("no promtool; Debian has it in prometheus")
	}
	golden, err := os.Open("testdata/metrics/scrape.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer golden.Close()
	cmd := exec.CommandContext(t.Context(), promtool, "check", "metrics")
	cmd.Stdin = golden
	if said, err := cmd.CombinedOutput(); err != nil || len(said) > 0 {
		t.Errorf("%v: %s", err, said)
	}
}

// manyUsers is metrics of n users, each with transfers of several kinds.
func manyUsers(n int) *metrics {
	all := make([]userUsage, n)
	for i := range all {
		all[i] = userUsage{Name: fmt.Sprintf("user%04d", i), QuotaBytes: 2 << 30, UsedBytes: 123456789, QuotaFiles: 1000, UsedFiles: 77, Known: true}
	}
	src := allSources()
	src.Usage = func() []userUsage { return all }
	src.IsUser = func(string) bool { return true }
	m := exercise(newMetrics("1.2.3", "abcdef0", src))
	for _, u := range all {
		for _, result := range []string{"ok", "aborted", "client_gone"} {
			up := m.transferStarted(u.Name, "upload", "ftp")
			up.add(12345678)
			up.end(result)
		}
		m.transferStarted(u.Name, "download", "ftps").end("ok")
		m.quotaRejected(u.Name)
	}
	return m
}

// TestScrapeCost: what a scrape of 1,000 users allocates, which does not depend on the
// machine as its time does: that is BenchmarkScrape's, 50 ms at the most. The registry
// alone would allocate three times for each series.
func TestScrapeCost(t *testing.T) {
	m := manyUsers(1000)
	h := &scrapeHandler{gather: m.gather, inFlight: make(chan struct{}, 1)}
	q := &httpRequest{url: &url.URL{Path: "/metrics"}}
	size := 0
	allocs := testing.AllocsPerRun(3, func() {
		a := &httpAnswer{status: httpOK}
		h.answer(a, q)
		size = a.body.Len()
	})
	const series = 1000 * (4 + 3 + 1 + 2 + 1)
	if most := float64(2 * series); allocs > most || size < 40*series {
		t.Errorf("%v allocations for %d bytes; want at most %v", allocs, size, most)
	}
	t.Logf("%v allocations, %d bytes, %v a series", allocs, size, allocs/series)
}

func BenchmarkScrape(b *testing.B) {
	m := manyUsers(1000)
	for _, zipped := range []bool{false, true} {
		b.Run(map[bool]string{false: "plain", true: "gzip"}[zipped], func(b *testing.B) {
			h := &scrapeHandler{gather: m.gather, inFlight: make(chan struct{}, 1)}
			q := &httpRequest{url: &url.URL{Path: "/metrics"}}
			if zipped {
				q.header = httpFields{{"Accept-Encoding", "gzip"}}
			}
			b.ReportAllocs()
			for b.Loop() {
				h.answer(&httpAnswer{status: httpOK}, q)
			}
		})
	}
}
