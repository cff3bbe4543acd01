"""The requests of Grafana's Elasticsearch data source as it sends them, raw, each answer equal to what Python makes of the
same messages; and what stays refused, beside a search that is answered."""

import collections
import http.client
import json
import math
import statistics

from harness import STEP_SECONDS, check, check_equal

MINUTE, DAY = 60_000, 86_400_000
PERCENTS = [25, 50, 75, 95, 99]
PATH = "/_elastic/_msearch?max_concurrent_shard_requests=5&ignore_throttled=false"


def call(broker, method, path, body=None, headers=None):
    """Status and answer, with no header that is not named."""
    connection = http.client.HTTPConnection(broker.http, timeout=STEP_SECONDS)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def answers(broker, topic, bodies):
    """The answers to several searches in one request, with a body that is announced and with one that is not."""
    heads = [topic, [f"{topic}-2015.05.16", topic], ""]
    lines = []
    for number, body in enumerate(bodies):
        head = {"ignore_unavailable": True, "index": heads[number % len(heads)], "search_type": "query_then_fetch"}
        lines += [head, body]
    text = "".join(json.dumps(line) + "\n" for line in lines).encode()
    found = []
    for headers in ({"Content-Type": "application/x-ndjson"}, {}):
        status, answer = call(broker, "POST", PATH, text, headers)
        check_equal(status, 200, "the status of _msearch")
        check_equal(len(answer["responses"]), len(bodies), "answers")
        found.append(answer["responses"])
    return found


def close(found, wanted, what):
    check(found is not None and math.isclose(found, wanted, rel_tol=1e-9, abs_tol=1e-9), f"{what}: {found}, not {wanted}")


class Requests:
    """Bodies with the functions that check their answers."""

    def __init__(self, messages):
        self.first, self.last = messages[600]["timestamp"], messages[2399]["timestamp"] + 500
        self.messages = messages
        self.inside = [m for m in messages if self.first <= m["timestamp"] <= self.last]
        self.range = {"range": {"@timestamp": {"format": "epoch_millis", "gte": self.first, "lte": self.last}}}
        self.query = {"bool": {"filter": self.range}}
        bounds = {"min": self.first, "max": self.last}
        self.filled = {"min_doc_count": 0, "extended_bounds": bounds, "format": "epoch_millis"}
        self.bodies, self.checks = [], []

    def add(self, body, checked):
        self.bodies.append(body)
        self.checks.append(checked)

    def aggs(self, aggs, checked):
        self.add({"size": 0, "query": self.query, "aggs": aggs}, lambda answer: checked(answer["aggregations"]))

    def string(self, text):
        return {"bool": {"filter": [self.range, {"query_string": {"analyze_wildcard": True, "query": text}}]}}

    def slots(self, messages, step, offset=0):
        """Time and number of messages of every slot in the range."""
        start = lambda time: (time - offset) // step * step + offset
        counts = collections.Counter(start(m["timestamp"]) for m in messages)
        return [(key, counts[key]) for key in range(start(self.first), start(self.last) + 1, step)]


def counts(aggregation):
    return [(bucket["key"], bucket["doc_count"]) for bucket in aggregation["buckets"]]


def of(messages, name):
    return [m["document"][name] for m in messages]


def add_logs(requests):
    """What Explore asks for."""
    r = requests
    by_level = collections.Counter(of(r.inside, "level"))

    def volume(field, checked):
        terms = {"field": field, "size": 500, "order": {"_count": "desc"}, "min_doc_count": 0, "missing": "unknown"}
        histogram = {"date_histogram": {"field": "@timestamp", "fixed_interval": "60000ms", **r.filled}}
        r.aggs({"2": {"terms": terms, "aggs": {"3": histogram}}}, lambda found: checked(found["2"]))

    def levels(found):
        full = [bucket for bucket in found["buckets"] if bucket["doc_count"]]
        check_equal({b["key"]: b["doc_count"] for b in full}, dict(by_level), "volume by level")
        check_equal([b["doc_count"] for b in full], sorted(by_level.values(), reverse=True), "the order of levels")
        for bucket in full:
            of_level = [m for m in r.inside if m["document"]["level"] == bucket["key"]]
            check_equal(counts(bucket["3"]), r.slots(of_level, MINUTE), f"volume of {bucket['key']}")

    def nothing(found):
        check_equal(counts(found), [("unknown", len(r.inside))], "volume by a field that no message has")
        check_equal(counts(found["buckets"][0]["3"]), r.slots(r.inside, MINUTE), "its volume")

    def numbers(found):
        shown = sum(bucket["doc_count"] for bucket in found["buckets"])
        check_equal(shown + found["sum_other_doc_count"], len(r.inside), "messages by a number")
        times = collections.Counter(of(r.inside, "ms"))
        for bucket in found["buckets"]:
            check_equal(bucket["doc_count"], times[bucket["key"]], f"messages with {bucket['key']}")
        check_equal(len(found["buckets"]), 500, "numbers")

    volume("json.level", levels)
    volume("json.nothing", nothing)
    volume("json.ms", numbers)

    newest = {"@timestamp": {"order": "desc", "unmapped_type": "boolean"}, "_doc": {"order": "desc"}}
    for sort in (newest, [{name: order} for name, order in newest.items()]):
        body = {
            "size": 500,
            "query": r.query,
            "sort": sort,
            "docvalue_fields": ["@timestamp"],
            "script_fields": {},
            "fields": [{"field": "@timestamp", "format": "strict_date_optional_time_nanos"}],
        }

        def lines(answer):
            hits = answer["hits"]["hits"]
            wanted = [m["id"] for m in reversed(r.inside)][:500]
            check_equal([hit["_id"] for hit in hits], wanted, "raw data")
            check_equal(hits[0]["_source"]["json"], r.inside[-1]["document"], "a document")
            check("T" in hits[0]["fields"]["@timestamp"][0], f"no time: {hits[0]['fields']}")

        r.add(body, lines)

    start = r.inside[100]
    body = {
        "size": 10,
        "query": r.query,
        "sort": {"@timestamp": {"order": "asc", "unmapped_type": "boolean"}, "_doc": {"order": "asc"}},
        "search_after": [start["timestamp"], start["id"]],
        "docvalue_fields": ["@timestamp"],
        "script_fields": {},
        "highlight": {
            "fields": {"*": {}},
            "pre_tags": ["@HIGHLIGHT@"],
            "post_tags": ["@/HIGHLIGHT@"],
            "fragment_size": 2147483647,
        },
        "aggs": {"1": {"date_histogram": {"field": "@timestamp", "fixed_interval": "21600000ms", **r.filled}}},
    }

    def context(answer):
        check_equal([hit["_id"] for hit in answer["hits"]["hits"]], [m["id"] for m in r.inside[101:111]], "context")
        check_equal(counts(answer["aggregations"]["1"]), r.slots(r.inside, 6 * 60 * MINUTE), "volume beside it")

    r.add(body, context)


def add_panels(requests):
    """What panels and variables ask for."""
    r = requests
    users = sorted(collections.Counter(m["document"]["user"]["name"] for m in r.inside).items())
    body = {"size": 0, "query": r.string("*")}
    body["aggs"] = {"1": {"terms": {"field": "json.user.name", "size": 500, "order": {"_key": "asc"}}}}
    r.add(body, lambda answer: check_equal(counts(answer["aggregations"]["1"]), users, "a variable"))

    first, last = str(r.first), str(r.last)
    old = {
        "size": 0,
        "query": {"bool": {"filter": [{"range": {"@timestamp": {"gte": first, "lte": last, "format": "epoch_millis"}}}]}},
        "aggs": {
            "2": {
                "date_histogram": {
                    "field": "@timestamp",
                    "interval": "1m",
                    "min_doc_count": "0",
                    "extended_bounds": {"min": first, "max": last},
                    "format": "epoch_millis",
                },
                "aggs": {},
            }
        },
    }
    minutes = r.slots(r.inside, MINUTE)
    r.add(old, lambda answer: check_equal(counts(answer["aggregations"]["2"]), minutes, "an old histogram"))

    by_level = collections.defaultdict(list)
    for message in r.inside:
        by_level[message["document"]["level"]].append(message)
    mean = {level: statistics.fmean(of(inside, "ms")) for level, inside in by_level.items()}
    metrics = {
        "1": {"avg": {"field": "json.ms", "missing": "0"}},
        "4": {"percentiles": {"field": "json.ms", "percents": [str(percent) for percent in PERCENTS]}},
        "5": {"extended_stats": {"field": "json.ratio", "sigma": "2"}},
        "6": {"cardinality": {"field": "json.user.id", "precision_threshold": "100"}},
    }
    histogram = {"field": "@timestamp", "fixed_interval": "1000ms", **r.filled}
    aggs = {
        "3": {
            "terms": {"field": "json.level", "size": 10, "order": {"1": "desc"}, "min_doc_count": 1},
            "aggs": {"1": {"avg": {"field": "json.ms"}}, "2": {"date_histogram": histogram, "aggs": metrics}},
        }
    }

    def checked(found):
        buckets = found["3"]["buckets"]
        check_equal([b["key"] for b in buckets], sorted(mean, key=mean.get, reverse=True), "levels by their average")
        for bucket in buckets:
            inside = by_level[bucket["key"]]
            close(bucket["1"]["value"], mean[bucket["key"]], "average of a level")
            check_equal(counts(bucket["2"]), r.slots(inside, 1000), "messages in a second")
            full = {m["timestamp"] // 1000 * 1000: m["document"] for m in inside}
            for slot in bucket["2"]["buckets"]:
                document = full.get(slot["key"])
                values = slot["4"]["values"]
                check_equal(sorted(values, key=float), [f"{percent:.1f}" for percent in PERCENTS], "percentiles")
                if document is None:
                    check_equal((slot["1"]["value"], set(values.values())), (None, {None}), "metrics of nothing")
                    check_equal((slot["5"]["count"], slot["5"]["avg"], slot["6"]["value"]), (0, None, 0), "of nothing")
                else:
                    close(slot["1"]["value"], document["ms"], "average in a second")
                    check(all(abs(v - document["ms"]) <= 0.02 * document["ms"] + 1e-9 for v in values.values()), f"{slot}")
                    close(slot["5"]["max"], document["ratio"], "statistics of a second")
                    check_equal(slot["6"]["value"], 1, "users in a second")

    r.aggs(aggs, checked)

    upper = {level: mean[level] + 2 * statistics.pstdev(of(inside, "ms")) for level, inside in by_level.items()}
    lower = {level: mean[level] - 2 * statistics.pstdev(of(inside, "ms")) for level, inside in by_level.items()}
    for name, bounds in (("std_upper", upper), ("std_lower", lower)):
        aggs = {
            "2": {
                "terms": {"field": "json.level", "size": 3, "order": {f"1[{name}]": "desc"}},
                "aggs": {"1": {"extended_stats": {"field": "json.ms"}}},
            }
        }
        order = sorted(bounds, key=bounds.get, reverse=True)[:3]
        r.aggs(aggs, lambda found, o=order: check_equal([b["key"] for b in found["2"]["buckets"]], o, "by a bound"))
    aggs = {
        "2": {
            "terms": {"field": "json.user.name", "size": 5, "order": {"1[95.0]": "desc"}},
            "aggs": {"1": {"percentiles": {"field": "json.ms", "percents": ["95.0"]}}},
        }
    }

    def by_percentile(found):
        values = [bucket["1"]["values"]["95.0"] for bucket in found["2"]["buckets"]]
        check_equal((len(values), values), (5, sorted(values, reverse=True)), "users by a percentile")
        shown = sum(bucket["doc_count"] for bucket in found["2"]["buckets"])
        check_equal(shown + found["2"]["sum_other_doc_count"], len(r.inside), "messages of users")

    r.aggs(aggs, by_percentile)

    filters = {
        name: {"query_string": {"query": query, "analyze_wildcard": True}}
        for name, query in (("bad", "json.level:error"), ("*", "*"))
    }
    week = {"date_histogram": {"field": "@timestamp", "calendar_interval": "1w", **r.filled}}

    def filtered(found):
        # Weeks start on Mondays.
        for name, inside in (("bad", by_level["error"]), ("*", r.inside)):
            bucket = found["2"]["buckets"][name]
            check_equal(bucket["doc_count"], len(inside), f"messages of {name}")
            check_equal(counts(bucket["3"]), r.slots(inside, 7 * DAY, 4 * DAY), f"weeks of {name}")

    r.aggs({"2": {"filters": {"filters": filters}, "aggs": {"3": week}}}, filtered)

    steps = collections.Counter(ms // 250 * 250 for ms in of(r.inside, "ms"))
    aggs = {"2": {"histogram": {"interval": 250, "field": "json.ms", "min_doc_count": 0}}}
    r.aggs(aggs, lambda found: check_equal(counts(found["2"]), sorted(steps.items()), "a histogram"))

    aggs = {"2": {"terms": {"field": "topic", "size": 10, "order": {"_key": "desc"}, "min_doc_count": 1}}}
    topics = [(r.inside[0]["id"].split("/")[0], len(r.inside))]
    r.aggs(aggs, lambda found: check_equal(counts(found["2"]), topics, "topics"))
    partitions = sorted(collections.Counter(m["partition"] for m in r.inside).items())
    aggs = {"2": {"terms": {"field": "partition", "size": 10, "order": {"_key": "asc"}, "min_doc_count": 0}}}
    r.aggs(aggs, lambda found: check_equal(counts(found["2"]), partitions, "partitions"))


def add_pipelines(requests):
    r = requests
    slots = collections.defaultdict(list)
    for message in r.inside:
        slots[message["timestamp"] // MINUTE * MINUTE].append(message["document"]["ms"])
    means = [statistics.fmean(slots[key]) for key, _ in r.slots(r.inside, MINUTE)]
    sums = [sum(slots[key]) for key, _ in r.slots(r.inside, MINUTE)]
    moving = "MovingFunctions.unweightedAvg(values)"
    inner = {
        "1": {"avg": {"field": "json.ms"}},
        "2": {"sum": {"field": "json.ms"}},
        "3": {"derivative": {"buckets_path": "1", "unit": "1s"}},
        "4": {"cumulative_sum": {"buckets_path": "1"}},
        "5": {"serial_diff": {"buckets_path": "_count", "lag": "2"}},
        "6": {"moving_fn": {"buckets_path": "1", "window": "5", "script": moving, "shift": 0}},
        "7": {"bucket_script": {"buckets_path": {"a": "1", "b": "2"}, "script": "params.a / (params.b + 1) * 100"}},
        "8": {"derivative": {"buckets_path": "6"}},
        "9": {"rate": {"field": "json.ms", "unit": "second", "mode": "sum"}},
    }
    histogram = {"field": "@timestamp", "fixed_interval": "60000ms", **r.filled}

    def checked(found):
        buckets = found["0"]["buckets"]
        check_equal(len(buckets), len(means), "buckets with pipelines")
        for number, bucket in enumerate(buckets):
            close(bucket["4"]["value"], sum(means[: number + 1]), "cumulative sum")
            close(bucket["7"]["value"], means[number] / (sums[number] + 1) * 100, "bucket script")
            close(bucket["9"]["value"], sums[number] / 60, "rate")
            check_equal("3" in bucket, number > 0, "where a derivative is")
            if number > 0:
                close(bucket["3"]["value"], means[number] - means[number - 1], "derivative")
                close(bucket["3"]["normalized_value"], (means[number] - means[number - 1]) / 60, "derivative by second")
                close(bucket["6"]["value"], statistics.fmean(means[max(0, number - 5) : number]), "moving average")
            else:
                check_equal(bucket["6"]["value"], None, "moving average of nothing")
            check_equal("5" in bucket, number > 1, "where a difference is")
            if number > 1:
                close(bucket["5"]["value"], bucket["doc_count"] - buckets[number - 2]["doc_count"], "difference")
                close(bucket["8"]["value"], bucket["6"]["value"] - buckets[number - 1]["6"]["value"], "of a moving average")

    r.aggs({"0": {"date_histogram": histogram, "aggs": inner}}, checked)


def add_queries(requests):
    """Filters and query strings."""
    r = requests

    def counted(query, fits, messages, what):
        body = {"size": 0, "query": query, "track_total_hits": True}
        wanted = sum(1 for message in messages if fits(message))
        check(wanted > 0, f"{what} finds nothing in Python")
        r.add(body, lambda answer: check_equal(answer["hits"]["total"]["value"], wanted, what))

    phrase = lambda field, text: {"match_phrase": {field: {"query": text}}}
    counted(
        {"bool": {"filter": [r.range], "must": [phrase("json.level", "error")], "must_not": [phrase("key", "k3")]}},
        lambda m: m["document"]["level"] == "error" and m["key"] != "k3",
        r.inside,
        "ad hoc filters",
    )
    for bound, fits in (("lt", lambda ms: ms < 500), ("gt", lambda ms: ms > 500)):
        filter_ = {"range": {"json.ms": {bound: "500"}}}
        ad_hoc = lambda m, f=fits: f(m["document"]["ms"])
        counted({"bool": {"filter": [r.range, filter_]}}, ad_hoc, r.inside, f"an ad hoc {bound}")
    counted({"bool": {"filter": [r.range, {"term": {"json.user.id": "7"}}]}}, lambda m: m["document"]["user"]["id"] == 7, r.inside, "a number as a text")

    many = " OR ".join(f'"user\\-{number}"' for number in range(600))
    text = lambda m: m["document"]["text"]
    level = lambda m: m["document"]["level"]
    for string, fits in [
        ('json.level:("info" OR "warn")', lambda m: level(m) in ("info", "warn")),
        ('* AND json.user.name:"user\\-7"', lambda m: m["document"]["user"]["name"] == "user-7"),
        ('* AND -json.level:"error"', lambda m: level(m) != "error"),
        ("json.ms:>500", lambda m: m["document"]["ms"] > 500),
        ('"late lost" AND NOT "paid"', lambda m: "late lost" in text(m) and "paid" not in text(m)),
        ('_index:"events"', lambda m: True),
        ("_index:ev*ts", lambda m: True),
        ("json.level:*", lambda m: True),
        ('offset:"700"', lambda m: m["id"].endswith("/700")),
        ("_exists_:json.ok", lambda m: True),
        ('partition:"0"', lambda m: m["partition"] == 0),
        ("NOT partition:0", lambda m: m["partition"] != 0),
        (f'_id:"{r.inside[5]["id"]}"', lambda m: m["id"] == r.inside[5]["id"]),
        ("json.text:/tim.*/", lambda m: "timeout" in text(m)),
        ("json.text:/(par|re).*/", lambda m: any(w.startswith(("par", "re")) for w in text(m).split())),
        ("json.text:*meou*", lambda m: "timeout" in text(m)),
        ("json.text:L?st", lambda m: "lost" in text(m)),
        ("json.text:(*aid AND -*ime*)", lambda m: "paid" in text(m) and "timeout" not in text(m)),
        ("*meou*", lambda m: "timeout" in text(m)),
        ("key:?1", lambda m: m["key"] == "k1"),
        ("json.level:w*n", lambda m: level(m) == "warn"),
        (f"json.user.name:({many})", lambda m: True),
    ]:
        counted(r.string(string), fits, r.inside, f"the query string {string[:60]}")

    moment = {"from": r.first, "to": r.last, "format": "epoch_millis"}
    annotations = {
        "query": {
            "bool": {
                "filter": [
                    {
                        "bool": {
                            "should": [{"range": {"@timestamp": moment}}, {"range": {"json.end": moment}}],
                            "minimum_should_match": 1,
                        }
                    },
                    {"query_string": {"query": "json.level:error AND json.ms:<500"}},
                ]
            }
        },
        "size": 10000,
    }
    wanted = [m["id"] for m in reversed(r.inside) if level(m) == "error" and m["document"]["ms"] < 500]
    r.add(annotations, lambda answer: check_equal([h["_id"] for h in answer["hits"]["hits"]], wanted, "annotations"))


def check_refusals(broker, topic, requests):
    """Each beside a search that is answered all the same."""
    in_histogram = lambda inner: {
        "0": {
            "date_histogram": {"field": "@timestamp", "fixed_interval": "1m"},
            "aggs": {"1": {"avg": {"field": "json.ms"}}, "2": inner},
        }
    }
    refused = [
        ({"aggs": in_histogram({"moving_avg": {"buckets_path": "1", "window": 5}})}, "moving_avg"),
        ({"aggs": in_histogram({"moving_fn": {"buckets_path": "1", "window": 5, "script": "values[0]"}})}, "values[0]"),
        ({"aggs": in_histogram({"top_metrics": {"metrics": [{"field": "json.ms"}]}})}, "top_metrics"),
        ({"aggs": in_histogram({"bucket_script": {"buckets_path": {"a": "1"}, "script": "Math.abs(params.a)"}})}, "Math"),
        (
            {"aggs": {"0": {"date_histogram": {"field": "@timestamp", "fixed_interval": "1h", "time_zone": "Europe/Berlin"}}}},
            "Europe/Berlin",
        ),
        ({"aggs": {"0": {"terms": {"field": "value"}}}}, "value"),
        (
            {
                "aggs": {
                    "0": {
                        "terms": {"field": "json.level", "order": {"1[42.0]": "desc"}},
                        "aggs": {"1": {"percentiles": {"field": "json.ms", "percents": [95]}}},
                    }
                }
            },
            "1[42.0]",
        ),
        ({"query": {"query_string": {"query": "json.text:timeuot~"}}}, "fuzzy"),
        ({"query": {"query_string": {"query": "json.text:/^tim/"}}}, "whole word"),
        ({"query": {"query_string": {"query": "json.user.name:user\\-?1"}}}, "one word"),
        ({"query": {"query_string": {"query": " ".join(f"*{n}" for n in range(65))}}}, "64"),
        ({"sort": {"json.ms": "desc"}}, "json.ms"),
        ({"script_fields": {"a": {"script": "1"}}}, "script_fields"),
    ]
    good = {"size": 0, "query": requests.query, "track_total_hits": True}
    for found in answers(broker, topic, [good] + [{"size": 0, **body} for body, _ in refused] + [good]):
        for answer in (found[0], found[-1]):
            check_equal((answer["status"], answer["hits"]["total"]["value"]), (200, len(requests.inside)), "a good search")
        for answer, (body, named) in zip(found[1:-1], refused):
            reason = answer["error"]["reason"] if "error" in answer else "answered"
            check_equal((answer["status"], named in reason), (400, True), f"{json.dumps(body)[:150]}: {reason}")
    return len(refused)


def check_gets(broker, topic):
    for path in ("/_elastic", "/_elastic/"):
        status, answer = call(broker, "GET", path)
        check_equal((status, "number" in answer["version"]), (200, True), path)
    status, answer = call(broker, "GET", "/_elastic/_cluster/health?wait_for_status=yellow")
    check_equal((status, answer["status"]), (200, "green"), "health")
    for path in ("/_elastic/_mapping", f"/_elastic/{topic}/_mapping"):
        status, answer = call(broker, "GET", path)
        properties = answer[topic]["mappings"]["properties"]
        kinds = {name: properties[name]["type"] for name in ("@timestamp", "topic", "partition", "key", "value")}
        wanted = {"@timestamp": "date", "topic": "keyword", "partition": "long", "key": "keyword", "value": "text"}
        check_equal((status, kinds), (200, wanted), path)
    check_equal(call(broker, "GET", f"/_elastic/{topic}-2015.05.17/_mapping")[0], 404, "the mapping of no index")
    status, answer = call(broker, "GET", f"/_elastic/{topic}/_field_caps?fields=*")
    for field, kind in (("_index", "keyword"), ("topic", "keyword"), ("partition", "long"), ("json.ms", "long")):
        check_equal((status, answer["fields"][field][kind]["aggregatable"]), (200, True), field)
    status, answer = call(broker, "GET", "/_elastic/_field_caps?fields=@timestamp")
    check_equal((status, list(answer["fields"])), (200, ["@timestamp"]), "capabilities of one field")


def check_raw_requests(broker, topic, messages):
    requests = Requests(messages)
    for add in (add_logs, add_panels, add_pipelines, add_queries):
        add(requests)
    for found in answers(broker, topic, requests.bodies):
        for body, answer, checked in zip(requests.bodies, found, requests.checks):
            check_equal(answer["status"], 200, f"{json.dumps(body)[:150]}: {json.dumps(answer.get('error'))}")
            checked(answer)
    refused = check_refusals(broker, topic, requests)
    check_gets(broker, topic)
    return len(requests.bodies), refused
