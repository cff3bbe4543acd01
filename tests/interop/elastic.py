"""The official Elasticsearch client against `/_elastic`: searches, pages, scans, aggregations, counts and fields, hot and
cold, each answer equal to what Python makes of the same messages; and the requests of Grafana's data source."""

import collections
import json
import math
import random
import sys

from elasticsearch import ApiError, Elasticsearch, NotFoundError
from elasticsearch.helpers import scan

from grafana import check_raw_requests
from harness import arguments, check, check_broker, check_equal, say

TOPIC = "events"
PARTITIONS = 3
MESSAGES = 3000
BASE_MS = 1_431_820_800_000
LEVELS = ["debug", "info", "warn", "error"]
WORDS = "late lost parcel paid order refund café 東京 timeout retry".split()
PAGE = 170


def make_messages():
    """What is produced, with where it will lie: partitions are named, so that offsets are known."""
    rng = random.Random(4)
    offsets = collections.Counter()
    messages = []
    for number in range(MESSAGES):
        partition = number % PARTITIONS
        document = {
            "level": rng.choices(LEVELS, [1, 6, 2, 1])[0],
            "ms": rng.randrange(2000),
            "ratio": rng.random(),
            "ok": rng.random() < 0.9,
            "user": {"id": rng.randrange(40), "name": f"user-{rng.randrange(40)}"},
            "text": " ".join(rng.choices(WORDS, k=6)),
        }
        messages.append(
            {
                "id": f"{TOPIC}/{partition}/{offsets[partition]}",
                "partition": partition,
                "timestamp": BASE_MS + number * 1000,
                "key": f"k{number % 11}",
                "document": document,
            }
        )
        offsets[partition] += 1
    return messages


def produce(broker, messages):
    lines = (
        {
            "key": message["key"],
            "value": json.dumps(message["document"], ensure_ascii=False),
            "timestamp": message["timestamp"],
            "partition": message["partition"],
        }
        for message in messages
    )
    body = "".join(json.dumps(line) + "\n" for line in lines)
    broker.call("POST", f"/v1/topics/{TOPIC}/messages", body.encode())


def ids(hits):
    return [hit["_id"] for hit in hits]


def close(found, wanted, what):
    check(found is not None and math.isclose(found, wanted, rel_tol=1e-9), f"{what}: found {found}, wanted {wanted}")


def check_searches(client, messages):
    newest = [{"@timestamp": "desc"}]
    cases = [
        ({"match_all": {}}, lambda m: True),
        ({"match": {"json.text": "late lost"}}, lambda m: {"late", "lost"} & set(m["document"]["text"].split())),
        (
            {"match": {"json.text": {"query": "late lost", "operator": "and"}}},
            lambda m: {"late", "lost"} <= set(m["document"]["text"].split()),
        ),
        ({"match_phrase": {"json.text": "late lost"}}, lambda m: "late lost" in m["document"]["text"]),
        ({"term": {"json.level": "error"}}, lambda m: m["document"]["level"] == "error"),
        ({"terms": {"json.user.id": [3, 7]}}, lambda m: m["document"]["user"]["id"] in (3, 7)),
        ({"term": {"json.ok": False}}, lambda m: not m["document"]["ok"]),
        ({"prefix": {"json.text": "re"}}, lambda m: any(w.startswith("re") for w in m["document"]["text"].split())),
        ({"range": {"json.ms": {"gte": 500, "lt": 700}}}, lambda m: 500 <= m["document"]["ms"] < 700),
        ({"range": {"json.ratio": {"gt": 0.75}}}, lambda m: m["document"]["ratio"] > 0.75),
        (
            {"range": {"@timestamp": {"gte": "2015-05-17T00:10", "lte": "2015-05-17T00:20"}}},
            lambda m: BASE_MS + 600_000 <= m["timestamp"] < BASE_MS + 1_260_000,
        ),
        ({"exists": {"field": "json.nothing"}}, lambda m: False),
        ({"match": {"json.text": "東京"}}, lambda m: "東京" in m["document"]["text"]),
        (
            {"query_string": {"query": "json.level:error OR json.ms:>=1900"}},
            lambda m: m["document"]["level"] == "error" or m["document"]["ms"] >= 1900,
        ),
        (
            {
                "bool": {
                    "must": [{"match": {"json.text": "parcel"}}],
                    "should": [{"term": {"json.level": "info"}}, {"term": {"key": "k3"}}],
                    "minimum_should_match": 1,
                    "must_not": [{"term": {"json.ok": False}}],
                    "filter": {"range": {"json.ms": {"lt": 1500}}},
                }
            },
            lambda m: "parcel" in m["document"]["text"].split()
            and (m["document"]["level"] == "info" or m["key"] == "k3")
            and m["document"]["ok"]
            and m["document"]["ms"] < 1500,
        ),
    ]
    for query, fits in cases:
        wanted = [message["id"] for message in reversed(messages) if fits(message)]
        answer = client.search(index=TOPIC, query=query, sort=newest, size=PAGE, track_total_hits=True)
        check_equal(ids(answer["hits"]["hits"]), wanted[:PAGE], f"hits of {query}")
        check_equal(answer["hits"]["total"], {"value": len(wanted), "relation": "eq"}, f"total of {query}")
        check_equal(client.count(index=TOPIC, query=query)["count"], len(wanted), f"count of {query}")
    hit = client.search(index=TOPIC, query={"term": {"json.user.id": 3}}, size=1, highlight={"fields": {"*": {}}})
    hit = hit["hits"]["hits"][0]
    message = next(message for message in messages if message["id"] == hit["_id"])
    check_equal(hit["_source"]["json"], message["document"], "the document of a hit")
    check_equal(hit["highlight"]["json.user.id"], ["<em>3</em>"], "highlights")
    return len(cases)


def check_pages(client, messages):
    """search_after, from, scan and a point in time see each message once, in order."""
    wanted = [message["id"] for message in messages]
    found, after = [], None
    while True:
        extra = {"search_after": after} if after else {}
        hits = client.search(index=TOPIC, sort=[{"@timestamp": "asc"}, "_doc"], size=PAGE, **extra)["hits"]["hits"]
        if not hits:
            break
        found += ids(hits)
        after = hits[-1]["sort"]
    check_equal(found, wanted, "search_after")
    page = client.search(index=TOPIC, sort="@timestamp:asc", from_=100, size=50)["hits"]["hits"]
    check_equal(ids(page), wanted[100:150], "from and size")
    found = ids(scan(client, index=TOPIC, query={"query": {"term": {"json.level": "warn"}}}, size=PAGE))
    warned = [message["id"] for message in messages if message["document"]["level"] == "warn"]
    check_equal(sorted(found), sorted(warned), "scan")
    pit = client.open_point_in_time(index=TOPIC, keep_alive="1m")["id"]
    answer = client.search(pit={"id": pit}, size=0, track_total_hits=True)
    check_equal(answer["hits"]["total"]["value"], len(messages), "total in a point in time")
    client.close_point_in_time(id=pit)


def check_aggregations(client, messages):
    documents = [message["document"] for message in messages]
    answer = client.search(
        index=TOPIC,
        size=0,
        aggs={
            "levels": {
                "terms": {"field": "json.level", "order": {"slow": "desc"}},
                "aggs": {"slow": {"avg": {"field": "json.ms"}}},
            },
            "users": {"terms": {"field": "json.user.name", "size": 7}},
            "time": {
                "date_histogram": {"field": "@timestamp", "fixed_interval": "5m"},
                "aggs": {"bad": {"filter": {"term": {"json.level": "error"}}}, "ms": {"stats": {"field": "json.ms"}}},
            },
            "ms": {"histogram": {"field": "json.ms", "interval": 250}},
            "ranges": {"range": {"field": "json.ratio", "ranges": [{"to": 0.25}, {"from": 0.25, "to": 0.5}, {"from": 0.5}]}},
            "stats": {"extended_stats": {"field": "json.ratio"}},
            "median": {"percentiles": {"field": "json.ms", "percents": [50]}},
            "distinct": {"cardinality": {"field": "json.user.id"}},
            "keys": {"terms": {"field": "key", "size": 20}},
            "months": {"date_histogram": {"field": "@timestamp", "calendar_interval": "month"}},
        },
    )
    found = answer["aggregations"]
    by_level = collections.defaultdict(list)
    for document in documents:
        by_level[document["level"]].append(document["ms"])
    mean = {level: sum(values) / len(values) for level, values in by_level.items()}
    check_equal(
        [(bucket["key"], bucket["doc_count"]) for bucket in found["levels"]["buckets"]],
        [(level, len(by_level[level])) for level in sorted(mean, key=mean.get, reverse=True)],
        "terms by their average",
    )
    for bucket in found["levels"]["buckets"]:
        close(bucket["slow"]["value"], mean[bucket["key"]], "average")
    users = collections.Counter(document["user"]["name"] for document in documents)
    wanted = sorted(users.items(), key=lambda item: (-item[1], item[0]))[:7]
    check_equal([(b["key"], b["doc_count"]) for b in found["users"]["buckets"]], wanted, "terms by count")
    slots = collections.defaultdict(list)
    for message in messages:
        slots[message["timestamp"] // 300_000 * 300_000].append(message["document"])
    check_equal([b["key"] for b in found["time"]["buckets"]], sorted(slots), "date histogram")
    for bucket in found["time"]["buckets"]:
        inside = slots[bucket["key"]]
        check_equal(bucket["doc_count"], len(inside), "messages in five minutes")
        check_equal(bucket["bad"]["doc_count"], sum(d["level"] == "error" for d in inside), "errors in five minutes")
        close(bucket["ms"]["max"], max(d["ms"] for d in inside), "slowest in five minutes")
    steps = collections.Counter(document["ms"] // 250 * 250 for document in documents)
    check_equal([(b["key"], b["doc_count"]) for b in found["ms"]["buckets"]], sorted(steps.items()), "histogram")
    ratios = [document["ratio"] for document in documents]
    check_equal(
        [bucket["doc_count"] for bucket in found["ranges"]["buckets"]],
        [sum(r < 0.25 for r in ratios), sum(0.25 <= r < 0.5 for r in ratios), sum(r >= 0.5 for r in ratios)],
        "ranges",
    )
    close(found["stats"]["avg"], sum(ratios) / len(ratios), "average of all")
    close(found["stats"]["sum_of_squares"], sum(ratio * ratio for ratio in ratios), "sum of squares")
    median = sorted(document["ms"] for document in documents)[len(documents) // 2]
    check(abs(found["median"]["values"]["50.0"] - median) <= 0.02 * median, "the median is off by more than 2 %")
    check_equal(found["distinct"]["value"], len({d["user"]["id"] for d in documents}), "distinct users")
    keys = collections.Counter(message["key"] for message in messages)
    check_equal({b["key"]: b["doc_count"] for b in found["keys"]["buckets"]}, dict(keys), "keys")
    check_equal([b["key_as_string"] for b in found["months"]["buckets"]], ["2015-05-01T00:00:00.000Z"], "months")
    return len(found)


def check_grafana(client, messages):
    """Requests in the form in which Grafana's data source sends them, placeholders filled in."""
    first, last = messages[0]["timestamp"], messages[-1]["timestamp"]
    range_ = {"range": {"@timestamp": {"gte": first, "lte": last, "format": "epoch_millis"}}}
    header = {"search_type": "query_then_fetch", "ignore_unavailable": True, "index": TOPIC}
    graph = {
        "size": 0,
        "query": {"bool": {"filter": [range_, {"query_string": {"analyze_wildcard": True, "query": "json.ok:true"}}]}},
        "aggs": {
            "3": {
                "terms": {"field": "json.level", "size": 10, "order": {"_key": "desc"}, "min_doc_count": 1},
                "aggs": {
                    "2": {
                        "date_histogram": {
                            "field": "@timestamp",
                            "fixed_interval": "60000ms",
                            "min_doc_count": 0,
                            "extended_bounds": {"min": first, "max": last},
                            "format": "epoch_millis",
                        },
                        "aggs": {"1": {"avg": {"field": "json.ms"}}},
                    }
                },
            }
        },
    }
    logs = {
        "size": 500,
        "query": {"bool": {"filter": [range_, {"query_string": {"analyze_wildcard": True, "query": "json.text:timeout"}}]}},
        "sort": {"@timestamp": {"order": "desc", "unmapped_type": "boolean"}, "_doc": {"order": "desc"}},
        "script_fields": {},
        "fields": [{"field": "@timestamp", "format": "strict_date_optional_time_nanos"}],
        "docvalue_fields": ["@timestamp"],
        "highlight": {
            "fields": {"*": {}},
            "pre_tags": ["@HIGHLIGHT@"],
            "post_tags": ["@/HIGHLIGHT@"],
            "fragment_size": 2147483647,
        },
        "aggs": {
            "1": {"date_histogram": {"field": "@timestamp", "fixed_interval": "60000ms", "min_doc_count": 0,
                                     "extended_bounds": {"min": first, "max": last}, "format": "epoch_millis"}}
        },
    }
    answer = client.msearch(searches=[header, graph, header, logs, {"index": "none"}, {"query": {"match_all": {}}}])
    graph, logs, missing = answer["responses"]
    check_equal([graph["status"], logs["status"], missing["status"]], [200, 200, 404], "statuses")
    wanted = [message for message in messages if message["document"]["ok"]]
    for bucket in graph["aggregations"]["3"]["buckets"]:
        inside = [m for m in wanted if m["document"]["level"] == bucket["key"]]
        check_equal(bucket["doc_count"], len(inside), f"messages of level {bucket['key']}")
        check_equal(len(bucket["2"]["buckets"]), math.ceil(MESSAGES / 60), "buckets without gaps")
        for slot in bucket["2"]["buckets"]:
            values = [m["document"]["ms"] for m in inside if m["timestamp"] // 60_000 * 60_000 == slot["key"]]
            check_equal(slot["doc_count"], len(values), "messages in a minute")
            if values:
                close(slot["1"]["value"], sum(values) / len(values), "average in a minute")
            else:
                check_equal(slot["1"]["value"], None, "average of nothing")
    timed_out = [m["id"] for m in reversed(messages) if "timeout" in m["document"]["text"].split()]
    check_equal(ids(logs["hits"]["hits"]), timed_out[:500], "logs")
    check_equal(sum(b["doc_count"] for b in logs["aggregations"]["1"]["buckets"]), len(timed_out), "volume of logs")
    marked = logs["hits"]["hits"][0]["highlight"]["json.text"][0]
    check("@HIGHLIGHT@timeout@/HIGHLIGHT@" in marked, f"not marked: {marked}")
    # The lines around one of them, as the log context asks.
    middle = logs["hits"]["hits"][20]
    query = {"bool": {"filter": [range_]}}
    for order, step in (("desc", -1), ("asc", 1)):
        around = client.search(index=TOPIC, query=query, sort=[{"@timestamp": order}, "_doc"], size=3, search_after=middle["sort"])
        place = next(number for number, m in enumerate(messages) if m["id"] == middle["_id"])
        check_equal(ids(around["hits"]["hits"]), [messages[place + step * n]["id"] for n in (1, 2, 3)], "log context")


def check_catalogue(client):
    check_equal(client.ping(), True, "ping")
    check(client.info()["version"]["number"].startswith("8."), "version")
    check_equal(client.cluster.health(wait_for_status="yellow")["status"], "green", "health")
    fields = client.field_caps(index=f"{TOPIC[:3]}*", fields="*")["fields"]
    kinds = {"json.level": "keyword", "json.ms": "long", "json.ratio": "double", "json.ok": "boolean", "@timestamp": "date"}
    for field, kind in kinds.items():
        check(kind in fields[field] and fields[field][kind]["aggregatable"], f"{field}: {fields.get(field)}")
    lines = client.cat.indices(format="json")
    check_equal([(line["index"], line["docs.count"]) for line in lines], [(TOPIC, str(MESSAGES))], "indices")
    check(TOPIC in str(client.cat.indices()), "indices as text")
    check_equal(bool(client.indices.exists(index=TOPIC)), True, "exists")
    check_equal(bool(client.indices.exists(index="none")), False, "exists")
    properties = client.indices.get_mapping(index=TOPIC)[TOPIC]["mappings"]["properties"]
    check_equal(properties["json"]["properties"]["user"]["properties"]["id"]["type"], "long", "mapping")
    try:
        client.search(index="none")
        check(False, "an index that does not exist was searched")
    except NotFoundError as error:
        check_equal(error.body["error"]["type"], "index_not_found_exception", "error type")
    try:
        client.search(index=TOPIC, query={"nested": {"path": "a", "query": {"match_all": {}}}})
        check(False, "a nested query was answered")
    except ApiError as error:
        check_equal((error.status_code, "nested" in error.message or "nested" in str(error.body)), (400, True), "refusal")


def checks(broker):
    messages = make_messages()
    broker.create_topic(TOPIC, PARTITIONS, {"search.fast": "true"})
    client = Elasticsearch(f"http://{broker.http}/_elastic", request_timeout=60)
    half = MESSAGES // 2
    produce(broker, messages[:half])
    broker.archive(TOPIC)
    produce(broker, messages[half:])
    for state in ("half cold", "cold"):
        broker.wait_indexed(TOPIC)
        searches = check_searches(client, messages)
        check_pages(client, messages)
        aggregations = check_aggregations(client, messages)
        check_grafana(client, messages)
        requests, refused = check_raw_requests(broker, TOPIC, messages)
        check_catalogue(client)
        say(f"  {state}: {searches} queries, {aggregations} aggregations, {requests} requests of Grafana, {refused} refused, {MESSAGES} messages")
        broker.archive(TOPIC)
    client.close()


if __name__ == "__main__":
    sys.exit(check_broker("elastic", arguments(__doc__).parse_args(), checks))
