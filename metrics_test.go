package main

import (
	"bytes"
	"compress/gzip"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"google.golang.org/protobuf/proto"
)

var updateMetrics = flag.Bool("update-metrics", false, "write testdata/metrics/scrape.txt anew")

// exercisedMetrics returns metrics on which every method was called, so that
// every family has a sample.
func exercisedMetrics() *metrics {
	return exercise(newMetrics("1.2.3", "abcdef0", allSources()))
}

// allSources answers every question.
func allSources() metricSources {
	return metricSources{
		LoginReasons: []string{"unknown_user", "bad_password"},
		Usage: func() []userUsage {
			return []userUsage{
				{Name: "ann", QuotaBytes: 2 << 30, UsedBytes: 12345, QuotaFiles: 1000, UsedFiles: 7, Known: true},
				{Name: "cam\"1", UsedBytes: 5, Known: true, Rotates: true},
				{Name: "new", QuotaBytes: 1 << 20}, // whose home is still being counted
			}
		},
		IsUser:            func(name string) bool { return name == "ann" },
		StateFree:         func() (uint64, error) { return 123456789, nil },
		CertificateExpiry: func() time.Time { return time.Unix(2000000000, 0) },
		Bans:              func() int { return 3 },
		UploadHooks:       func() int { return 2 },
		Passive: func() passiveUsage {
			return passiveUsage{Size: 1000, InUse: 12, Fullest: 13, Waiting: 4, Refused: 5, Foreign: 6}
		},
		Partials:    func() (int, time.Time, bool) { return 2, time.Unix(1900000000, 0), true },
		Homes:       func() homeStates { return homeStates{Known: 7, Scanning: 1, Unknown: 2} },
		HashQueue:   func() int { return 8 },
		DigestQueue: func() int { return 9 },
		Staging:     func() int64 { return 1 << 20 },
		Draining:    func() int { return 1 },
	}
}

// exercise calls every method.
func exercise(m *metrics) *metrics {
	m.sessionStarted("ftp")
	m.sessionStarted("ftp")
	m.sessionSwitched("ftp", "frames")
	m.sessionStarted("local")
	m.sessionEnded("local", "idle")
	m.sessionRefused("ftps")
	m.login("password", "ok")
	m.login("password", "failed")
	up := m.transferStarted("ann", "upload", "ftp")
	m.transferStarted("ann", "download", "ftps")
	for _, n := range []int64{4096, 0, -1} {
		up.add(n)
	}
	up.started = up.started.Add(-250 * time.Millisecond)
	up.end("ok")
	up.end("error") // of no effect
	m.command("RETR", 226)
	m.command("RETR", 550)
	m.command("", 500)
	m.command("NOOP", 0)
	m.commandRun("snap", "ok", 2*time.Second)
	m.uploadHookLost("snap", "given_up")
	m.commandTook(classTransfer, 20*time.Millisecond)
	m.commandTook(classOther, -time.Second) // a clock that was set, or rounding
	m.loginFailed("bad_password")
	m.httpAnswered("metrics", 200)
	m.httpAnswered("/%2e%2e/etc", 404)
	m.logSuppressed(3)
	m.logSuppressed(-3)
	m.datagram("time", "ok")
	m.quotaRejected("ann")
	m.dataConnection("passive", "ok")
	m.tlsResumption("resumed")
	m.missingCloseNotify.Inc()
	m.panics.Inc()
	m.acceptErrors.Inc()
	return m
}

// ServeHTTP lets the tests ask a handler as they ask the library's.
func (h httpHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := &httpRequest{method: r.Method, url: r.URL}
	for name, values := range r.Header {
		for _, value := range values {
			q.header = append(q.header, struct{ name, value string }{name, value})
		}
	}
	a := &httpAnswer{status: httpOK}
	h(a, q)
	for _, f := range a.header {
		w.Header().Add(f.name, f.value)
	}
	w.WriteHeader(a.status)
	w.Write(a.body.Bytes())
}

func getPage(t *testing.T, h http.Handler, method, path string, header ...string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequest(method, path, nil)
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// ownLines keeps the lines of a scrape that are about berth_ metrics.
func ownLines(scrape string) string {
	var b strings.Builder
	for line := range strings.Lines(scrape) {
		name := strings.TrimPrefix(strings.TrimPrefix(line, "# HELP "), "# TYPE ")
		if strings.HasPrefix(name, "berth_") {
			b.WriteString(line)
		}
	}
	return b.String()
}

func TestScrapeGolden(t *testing.T) {
	// In the bubble it is always 2000-01-01, so the reload time stamp is fixed.
	synctest.Test(t, func(t *testing.T) {
		h := exercisedMetrics().page()
		w := getPage(t, h, "GET", "/metrics")
		if w.Code != http.StatusOK {
			t.Fatalf("GET /metrics = %d: %s", w.Code, w.Body)
		}
		got := regexp.MustCompile(`goversion="[^"]*"`).ReplaceAllString(ownLines(w.Body.String()), `goversion="go"`)
		const golden = "testdata/metrics/scrape.txt"
		if *updateMetrics {
			if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("the scrape differs from %s; read the new one with -update-metrics and git diff:\n%s", golden, got)
		}
	})
}

// Every name the contract lists must be in a scrape, and a daemon's own
// collectors beside them.
func TestScrapeHasContractNames(t *testing.T) {
	scrape := getPage(t, exercisedMetrics().page(), "GET", "/metrics").Body.String()
	for _, name := range []string{
		"berth_build_info", "berth_sessions", "berth_sessions_total", "berth_logins_total", "berth_bans",
		"berth_transfers_total", "berth_transfer_bytes_total", "berth_transfer_duration_seconds",
		"berth_transfers_active", "berth_quota_bytes", "berth_quota_used_bytes", "berth_quota_files",
		"berth_quota_used_files", "berth_quota_rejected_total", "berth_commands_total",
		"berth_command_duration_seconds", "berth_datagrams_total", "berth_control_commands_total",
		"berth_config_reload_success", "berth_config_reload_timestamp_seconds",
		"berth_certificate_expiry_timestamp_seconds", "berth_state_free_bytes",
		"berth_data_connections_total", "berth_tls_data_sessions_total", "berth_tls_missing_close_notify_total",
		"berth_panics_total", "berth_accept_errors_total", "go_goroutines", "process_open_fds",
	} {
		for _, kind := range []string{"HELP", "TYPE"} {
			if !strings.Contains(scrape, "# "+kind+" "+name+" ") {
				t.Errorf("no %s line for %s", kind, name)
			}
		}
	}
}

func TestScrapeLints(t *testing.T) {
	w := getPage(t, exercisedMetrics().page(), "GET", "/metrics")
	problems, err := promlint.New(strings.NewReader(ownLines(w.Body.String()))).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// A source that fails or panics costs its own gauge and nothing else.
func TestScrapeSurvivesBadSources(t *testing.T) {
	m := newMetrics("v", "r", metricSources{
		Usage:             func() []userUsage { panic("bug") },
		StateFree:         func() (uint64, error) { return 0, errors.New("gone") },
		CertificateExpiry: func() time.Time { return time.Time{} },
		Bans:              func() int { return 4 },
	})
	h := m.page()
	getPage(t, h, "GET", "/metrics")
	w := getPage(t, h, "GET", "/metrics")
	body := w.Body.String()
	if w.Code != http.StatusOK || !strings.Contains(body, "\nberth_bans 4\n") {
		t.Errorf("GET /metrics = %d without berth_bans 4:\n%s", w.Code, ownLines(body))
	}
	for _, absent := range []string{"berth_quota_", "berth_state_free_bytes", "berth_certificate_expiry"} {
		for line := range strings.Lines(body) {
			if strings.HasPrefix(line, absent) && !strings.HasPrefix(line, "berth_quota_rejected_total") {
				t.Errorf("sample of a failing source: %s", line)
			}
		}
	}
	if !regexp.MustCompile(`(?m)^berth_panics_total [12]$`).MatchString(body) {
		t.Error("a panicking source was not counted in berth_panics_total")
	}
}

func TestConfigReloadedRefusedKeepsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMetrics("v", "r", metricSources{})
		h := m.page()
		expect := func(success, stamp string) {
			t.Helper()
			body := getPage(t, h, "GET", "/metrics").Body.String()
			for _, line := range []string{"berth_config_reload_success " + success, "berth_config_reload_timestamp_seconds " + stamp} {
				if !strings.Contains(body, "\n"+line+"\n") {
					t.Errorf("scrape lacks %q", line)
				}
			}
		}
		expect("1", "9.466848e+08")
		time.Sleep(100 * time.Second) // the bubble's clock, not ours
		m.configReloaded(false)
		expect("0", "9.466848e+08")
		m.configReloaded(true)
		expect("1", "9.466849e+08")
	})
}

// Strangers who reach a label despite the callers' care meet a bound.
func TestPairCounterIsBounded(t *testing.T) {
	m := newMetrics("v", "r", metricSources{})
	for i := range 10 * metricPairLimit {
		m.command(fmt.Sprintf("X%d\xff", i), 500)
	}
	series := func(m *metrics) int {
		return strings.Count(getPage(t, m.page(), "GET", "/metrics").Body.String(), "\nberth_control_commands_total{")
	}
	known := series(newMetrics("v", "r", metricSources{}))
	body := getPage(t, m.page(), "GET", "/metrics").Body.String()
	if n := series(m); n > known+metricPairLimit+1 {
		t.Errorf("%d series of berth_control_commands_total, want at most %d", n, known+metricPairLimit+1)
	}
	want := fmt.Sprintf(`berth_control_commands_total{code_class="5xx",verb="other"} %d`, 9*metricPairLimit)
	if !strings.Contains(body, want) {
		t.Errorf("scrape lacks %q", want)
	}
}

func TestHotCountersDoNotAllocate(t *testing.T) {
	m := newMetrics("v", "r", metricSources{})
	b := m.transferStarted("ann", "download", "ftp")
	if n := testing.AllocsPerRun(100, func() {
		m.command("RETR", 226)
		m.datagram("time", "ok")
		b.add(65536)
		m.commandTook(classTransfer, time.Millisecond)
	}); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}

func TestMetricsConcurrently(t *testing.T) {
	m := newMetrics("v", "r", metricSources{Usage: func() []userUsage { return []userUsage{{Name: "ann"}} }})
	h := m.page()
	const workers, rounds = 8, 200
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range rounds {
				m.sessionStarted("ftp")
				m.command(fmt.Sprintf("V%d", i%20), 200)
				b := m.transferStarted("ann", "upload", "ftp")
				b.add(3)
				b.end("ok")
				m.sessionEnded("ftp", "ok")
				if i%100 == w {
					getPage(t, h, "GET", "/metrics")
				}
			}
		})
	}
	wg.Wait()
	body := getPage(t, h, "GET", "/metrics").Body.String()
	for _, want := range []string{
		`berth_transfer_bytes_total{direction="upload",protocol="ftp",user="ann"} 4800`,
		`berth_control_commands_total{code_class="2xx",verb="V7"} 80`,
		`berth_sessions{protocol="ftp"} 0`,
		`berth_transfers_active{direction="upload"} 0`,
		`berth_transfer_duration_seconds_count{direction="upload",protocol="ftp"} 1600`,
	} {
		if !strings.Contains(body, want+"\n") {
			t.Errorf("scrape lacks %q", want)
		}
	}
}

func TestScrapeGzip(t *testing.T) {
	w := getPage(t, exercisedMetrics().page(), "GET", "/metrics", "Accept-Encoding", "gzip")
	if got := w.Header().Get("Content-Encoding"); got != "gzip" {
		t.Fatalf("Content-Encoding = %q", got)
	}
	if body := unzipped(t, w.Body); !bytes.Contains(body.Bytes(), []byte("berth_build_info")) {
		t.Errorf("unzipped scrape: %d bytes", body.Len())
	}
}

func unzipped(t *testing.T, zipped io.Reader) *bytes.Buffer {
	t.Helper()
	z, err := gzip.NewReader(zipped)
	if err != nil {
		t.Fatal(err)
	}
	var body bytes.Buffer
	if _, err := body.ReadFrom(z); err != nil {
		t.Fatal(err)
	}
	return &body
}

// The library's own handler, on the same registry, is the judge of ours: status,
// header and every byte of the body.
func TestScrapeAsPromhttp(t *testing.T) {
	m := exercisedMetrics()
	// Gathered once, because the numbers of a process move.
	families, err := m.gather()
	if err != nil {
		t.Fatal(err)
	}
	gathered := prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) { return families, nil })
	ours := httpHandler((&scrapeHandler{gather: gathered, inFlight: make(chan struct{}, 1)}).answer)
	theirs := promhttp.HandlerFor(gathered, promhttp.HandlerOpts{
		ErrorHandling:       promhttp.ContinueOnError,
		MaxRequestsInFlight: 1,
	})
	accepts := []string{
		"", "*/*", "text/plain", "text/html", "text/plain;version=0.0.4;q=0.3", "text/plain; version=1.0.0; escaping=allow-utf-8",
		"text/plain;version=0.0.4;escaping=dots", "text/plain;version=0.0.4;escaping=values", "nonsense", ";;,,q=",
		"application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited",
		"application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=text",
		"application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=compact-text",
		"application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.2,text/plain;version=0.0.4;q=0.7",
		// As Prometheus 2 and 3 ask.
		"application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
		"application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5," +
			"text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
	}
	encodings := []string{
		"", "gzip", "gzip, deflate, br, zstd", "deflate, gzip;q=1.0, *;q=0.5", "gzip;q=0", "gzip;q=0.5, identity;q=0.9",
		"gzip;q=0.9, identity;q=0.5", "gzip ; q=0.9 , identity; q=0.5", "gzip, identity", "gzip;q=0.5, *;q=0.9", "gzip;q=x", "*", "*;q=0",
		"identity", "br", "gzip, *;q=0", ",", "gzip;q=0.001",
	}
	check := func(path, accept, encoding string) {
		t.Helper()
		var header []string
		if accept != "" {
			header = append(header, "Accept", accept)
		}
		if encoding != "" {
			header = append(header, "Accept-Encoding", encoding)
		}
		got, want := getPage(t, ours, "GET", path, header...), getPage(t, theirs, "GET", path, header...)
		if got.Code != want.Code || !reflect.DeepEqual(got.Header(), want.Header()) {
			t.Errorf("%s with %q: %d %v, want %d %v", path, header, got.Code, got.Header(), want.Code, want.Header())
		}
		if got.Header().Get("Content-Encoding") == "gzip" { // which we do faster and not as well
			got.Body, want.Body = unzipped(t, got.Body), unzipped(t, want.Body)
		}
		if !bytes.Equal(got.Body.Bytes(), want.Body.Bytes()) {
			t.Errorf("%s with %q: %d bytes, want these %d:\n%s", path, header, got.Body.Len(), want.Body.Len(), want.Body)
		}
	}
	for _, accept := range accepts {
		check("/metrics", accept, "")
		for _, encoding := range encodings {
			check("/metrics?name[]=berth_bans", accept, encoding)
		}
	}
	for _, path := range []string{
		"/metrics", "/metrics?name[]=berth_sessions&name[]=go_goroutines", "/metrics?name[]=none",
		"/metrics?name[]=", "/metrics?other=1", "/metrics?%zz",
	} {
		check(path, "", "gzip")
		check(path, "", "")
	}
}

// The registry is the judge of the families that do not come through it: of their
// names, labels, values, and the order of it all.
func TestUserFamiliesAsRegistry(t *testing.T) {
	for _, anonymous := range []bool{false, true} {
		src := allSources()
		src.Anonymous, src.IsUser = anonymous, func(string) bool { return true }
		m := newMetrics("1.2.3", "abcdef0", src)
		theirs := prometheus.NewRegistry()
		for _, c := range []*userCounters{m.transfers, m.transferBytes, m.quotaRejects} {
			theirs.MustRegister(c.vec)
		}
		gauges := map[string]*prometheus.GaugeVec{}
		for _, f := range m.quotaFamilies() {
			gauges[f.GetName()] = prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: f.GetName(), Help: f.GetHelp()}, m.labels("user"))
			theirs.MustRegister(gauges[f.GetName()])
		}
		gauge := func(name string, v int64, user string) {
			gauges[name].WithLabelValues(m.labels(user)...).Add(float64(v))
		}
		for _, u := range src.Usage() {
			gauge("berth_quota_bytes", u.QuotaBytes, u.Name)
			gauge("berth_quota_files", u.QuotaFiles, u.Name)
			if u.Known {
				gauge("berth_quota_used_bytes", u.UsedBytes, u.Name)
				gauge("berth_quota_used_files", u.UsedFiles, u.Name)
			}
			if u.Rotates && !anonymous {
				gauge("berth_quota_rotates", 1, u.Name)
			}
		}
		// Not in the order of a scrape, and some more than once.
		for i := range 200 {
			user := fmt.Sprintf("u%d\xff", i*7%23)
			up := m.transferStarted(user, []string{"upload", "download"}[i%2], []string{"ftps", "frames", "ftp"}[i%3])
			up.add(int64(i))
			up.end([]string{"ok", "error", "aborted", "no_space", "kicked"}[i*3%5])
			if i%4 == 0 {
				m.quotaRejected(user)
			}
		}
		got, err := m.gather()
		if err != nil {
			t.Fatal(err)
		}
		got = slices.DeleteFunc(got, func(f *dto.MetricFamily) bool {
			return !regexp.MustCompile(`^berth_(quota_.*|transfers_total|transfer_bytes_total)$`).MatchString(f.GetName())
		})
		want, err := theirs.Gather()
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != len(want) || len(want) < 7 {
			t.Fatalf("%d families, want %d, which are at least 7", len(got), len(want))
		}
		for i := range want {
			if !proto.Equal(got[i], want[i]) {
				t.Errorf("anonymous %v:\n%v\nwant\n%v", anonymous, got[i], want[i])
			}
		}
	}
}

// The library's encoder is the judge of ours, also of what no family of ours has yet;
// there is no -0 in a scrape.
func TestTextAsExpfmt(t *testing.T) {
	numbers := []float64{0, 1, -1, math.NaN(), math.Inf(1), math.Inf(-1), 0.1, 1e20, 1e21, 123456789012, 9007199254740993, 5e-324}
	values := []string{"", "a", "\"", "\\", "\n\r\t", "\u00e9 \x00", "}", "a,b=\"c\""}
	name, help, key := "x_total", "Of \\ and\n\"this\".", "label"
	for kind, fill := range map[dto.MetricType]func(*dto.Metric, *float64, uint64){
		dto.MetricType_COUNTER: func(m *dto.Metric, v *float64, _ uint64) { m.Counter = &dto.Counter{Value: v} },
		dto.MetricType_GAUGE:   func(m *dto.Metric, v *float64, _ uint64) { m.Gauge = &dto.Gauge{Value: v} },
		dto.MetricType_HISTOGRAM: func(m *dto.Metric, v *float64, n uint64) {
			m.Histogram = &dto.Histogram{SampleSum: v, SampleCount: &n}
			for i := range n {
				m.Histogram.Bucket = append(m.Histogram.Bucket, &dto.Bucket{UpperBound: &numbers[7+i%6], CumulativeCount: &i})
			}
		},
		dto.MetricType_SUMMARY: func(m *dto.Metric, v *float64, n uint64) {
			m.Summary = &dto.Summary{SampleSum: v, SampleCount: &n}
			for i := range n {
				m.Summary.Quantile = append(m.Summary.Quantile, &dto.Quantile{Quantile: &numbers[i], Value: v})
			}
		},
	} {
		family, list := newFamily(name, help, kind, textChunk/8)
		for i := range list {
			family.Metric = append(family.Metric, &list[i])
			fill(&list[i], &numbers[i%len(numbers)], uint64(i%5))
			for range i % 4 {
				list[i].Label = append(list[i].Label, &dto.LabelPair{Name: &key, Value: &values[i%len(values)]})
			}
		}
		var got, want bytes.Buffer
		var scratch []byte
		if err := writeText(&got, &scratch, family); err != nil {
			t.Fatal(err)
		}
		if _, err := expfmt.MetricFamilyToText(&want, family); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.Bytes(), want.Bytes()) {
			t.Errorf("%v:\n%s\nwant\n%s", kind, got.Bytes(), want.Bytes())
		}
	}
}

// Impatient scrapers beyond the limit are sent away, and none waits past the
// time-out; when the slow source answers at last, there is room again.
func TestScrapesInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		m := newMetrics("v", "r", metricSources{Bans: func() int { <-release; return 1 }})
		h := m.page()
		codes := make(chan int, scrapesInFlight)
		for range scrapesInFlight {
			go func() { codes <- getPage(t, h, "GET", "/metrics").Code }()
		}
		synctest.Wait()
		if w := getPage(t, h, "GET", "/metrics"); w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), "limit") {
			t.Errorf("a scrape past the limit: %d %q", w.Code, w.Body)
		}
		began := time.Now()
		for range scrapesInFlight {
			if code := <-codes; code != http.StatusServiceUnavailable {
				t.Errorf("a scrape that takes too long: %d", code)
			}
		}
		if waited := time.Since(began); waited != scrapeTimeout {
			t.Errorf("scrapes ended after %v, want %v", waited, scrapeTimeout)
		}
		close(release)
		synctest.Wait()
		if w := getPage(t, h, "GET", "/metrics"); w.Code != http.StatusOK {
			t.Errorf("a scrape after the jam: %d %q", w.Code, w.Body)
		}
	})
}

func TestScrapeOfNothing(t *testing.T) {
	h := &scrapeHandler{
		gather:   func() ([]*dto.MetricFamily, error) { return nil, errors.New("all is lost") },
		inFlight: make(chan struct{}, 1),
	}
	if w := getPage(t, httpHandler(h.answer), "GET", "/metrics"); w.Code != http.StatusInternalServerError || !strings.Contains(w.Body.String(), "all is lost") {
		t.Errorf("GET /metrics = %d %q", w.Code, w.Body)
	}
}

// The client of berth health is our own, so it must stand what may listen where
// berth should.
func TestAskHealthz(t *testing.T) {
	page := newHTTPServer(newPages(newFTPBox(t, "", "").srv).answer, func() {}, slog.New(slog.DiscardHandler))
	long := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusTeapot)
		w.Write(bytes.Repeat([]byte("x"), 1<<20))
	})
	speak := func(words string) func(net.Listener) {
		return func(ln net.Listener) {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			c.Read(make([]byte, 1<<10)) // closing with the question unread would be a reset
			io.WriteString(c, words)
			c.Close()
		}
	}
	for name, tt := range map[string]struct {
		serve  func(net.Listener)
		status int // 0: no answer
		answer string
	}{
		"berth": {func(ln net.Listener) {
			if c, err := ln.Accept(); err == nil {
				page.serve(c)
			}
		}, 200, "ok"},
		"other":       {func(ln net.Listener) { http.Serve(ln, long) }, 418, strings.Repeat("x", healthPageLimit)},
		"ftp":         {speak("220 ready\r\n"), 0, ""},
		"hangs up":    {speak(""), 0, ""},
		"endless":     {speak("HTTP/1.0 200 OK\r\nX: " + strings.Repeat("x", 2*healthAnswerLimit) + "\r\n\r\n"), 0, ""},
		"cut short":   {speak("HTTP/1.0 200 OK\r\nContent-Length: 10\r\n\r\nok"), 0, ""},
		"no reason":   {speak("HTTP/1.1 204\r\n\r\n"), 204, ""},
		"no status":   {speak("HTTP/1.1 -20 OK\r\n\r\n"), 0, ""},
		"no end":      {speak("HTTP/1.1 200 OK\r\nX: y\r\n"), 0, ""},
		"unavailable": {speak("HTTP/1.1 503 No\r\nContent-Length: 5\r\n\r\ndown\n"), 503, "down"},
	} {
		t.Run(name, func(t *testing.T) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			go tt.serve(ln)
			status, answer, err := askHealthz(ln.Addr().String(), false)
			if status != tt.status || string(answer) != tt.answer || (err == nil) != (tt.status != 0) {
				t.Errorf("%d %q %v; want %d %q", status, answer, err, tt.status, tt.answer)
			}
		})
	}
}

// A scraper that asks for OpenMetrics gets the classic format: berth_sessions
// and berth_sessions_total would be one family there.
func TestScrapeNeverOpenMetrics(t *testing.T) {
	w := getPage(t, exercisedMetrics().page(), "GET", "/metrics", "Accept", "application/openmetrics-text; version=1.0.0")
	if got := w.Header().Get("Content-Type"); w.Code != 200 || !strings.HasPrefix(got, "text/plain") {
		t.Errorf("GET /metrics = %d, Content-Type %q", w.Code, got)
	}
}

func BenchmarkMetricsCommand(b *testing.B) {
	m := newMetrics("v", "r", metricSources{})
	b.ReportAllocs()
	for b.Loop() {
		m.command("RETR", 226)
	}
}

func BenchmarkNewMetrics(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		newMetrics("v", "r", metricSources{})
	}
}
