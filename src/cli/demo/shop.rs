//! A shop's events, made up: the same seed gives the same events.
//!
//! Orders are placed, paid and delivered, stock goes down and is filled up again. Values are JSON with names, notes and
//! messages in them, so that there is something to search; exactly one order carries [`NEEDLE`].

use chrono::{DateTime, SecondsFormat, Utc};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

/// A word that one single event has.
pub const NEEDLE: &str = "lighthouse";
pub const DAYS: i64 = 30;
pub const DAY_MS: i64 = 86_400_000;
pub const TOPICS: [&str; 3] = ["orders", "payments", "stock"];

/// Place of the order with [`NEEDLE`] among all events: about day twelve.
const NEEDLE_AT: f64 = 0.4;
/// How much busier noon is than midnight, as a share of the mean.
const DAY_RHYTHM: f64 = 0.7;

const FIRST_NAMES: [&str; 16] = [
    "Ada", "Bruno", "Chidi", "Dana", "Emre", "Fatima", "Grace", "Hana", "Ines", "Jonas", "Kofi", "Lucía", "Milan",
    "Noor", "Oskar", "Priya",
];
const LAST_NAMES: [&str; 16] = [
    "Abara", "Bauer", "Costa", "Dubois", "Eriksen", "Fischer", "García", "Haddad", "Ivanova", "Jansen", "Kowalski",
    "Lindt", "Moreau", "Nakamura", "Okafor", "Petit",
];
const CITIES: [&str; 12] =
    ["Lisbon", "Graz", "Lyon", "Tartu", "Ghent", "Porto", "Malmö", "Trieste", "Gdańsk", "Cork", "Bilbao", "Zagreb"];
const MATERIALS: [&str; 10] =
    ["copper", "oak", "linen", "steel", "ceramic", "walnut", "glass", "wool", "bamboo", "marble"];
const GOODS: [&str; 14] = [
    "kettle", "lamp", "bowl", "chair", "blanket", "teapot", "shelf", "mirror", "basket", "clock", "vase", "mug",
    "tray", "rug",
];
const ORDER_STATES: [&str; 5] = ["placed", "packed", "shipped", "delivered", "returned"];
const NOTES: [&str; 10] = [
    "please leave it with the neighbour",
    "ring twice, the bell is broken",
    "a present, no invoice in the box",
    "deliver after six in the evening",
    "the last one arrived damaged, please pack it well",
    "call before delivery",
    "second floor, no lift",
    "late delivery is fine",
    "birthday gift, wrap it in paper",
    "leave it behind the garden gate",
];
const METHODS: [&str; 4] = ["card", "transfer", "invoice", "wallet"];
const PAYMENT_RESULTS: [(&str, &str); 8] = [
    ("captured", "payment captured"),
    ("captured", "payment captured after a second attempt"),
    ("authorised", "amount reserved until the parcel leaves"),
    ("captured", "payment captured"),
    ("declined", "card declined: insufficient funds"),
    ("declined", "card declined: expired"),
    ("refunded", "refund issued after return"),
    ("captured", "payment captured, risk check passed"),
];
const WAREHOUSES: [&str; 4] = ["north", "south", "harbour", "airport"];
const STOCK_REASONS: [(&str, &str); 6] = [
    ("sold", "picked for an order"),
    ("sold", "picked for an order"),
    ("restocked", "delivery from the supplier checked and shelved"),
    ("damaged", "broken in the warehouse, written off"),
    ("counted", "stocktaking corrected the level"),
    ("returned", "came back undamaged"),
];

/// One event.
pub struct Event {
    /// Index into [`TOPICS`].
    pub topic: usize,
    pub time_ms: i64,
    pub key: String,
    /// JSON.
    pub value: String,
}

/// Events in the order of time, spread over thirty days.
pub struct Shop {
    random: StdRng,
    start_ms: i64,
    made: u64,
    total: u64,
    needle_at: u64,
}

impl Shop {
    /// `total` events that end at `end_ms`.
    pub fn new(seed: u64, total: u64, end_ms: i64) -> Self {
        let needle_at = (total as f64 * NEEDLE_AT) as u64;
        Self { random: StdRng::seed_from_u64(seed), start_ms: end_ms - DAYS * DAY_MS, made: 0, total, needle_at }
    }

    /// When the event of this number happens: evenly over the days, within each more at noon than at midnight.
    fn time_ms(&self, number: u64) -> i64 {
        let days = number as f64 / self.total as f64 * DAYS as f64;
        let turn = std::f64::consts::TAU;
        let warped = days + DAY_RHYTHM / turn * (turn * days.fract()).sin();
        self.start_ms + (warped * DAY_MS as f64) as i64
    }

    fn pick<T: Copy>(&mut self, from: &[T], or: T) -> T {
        from.choose(&mut self.random).copied().unwrap_or(or)
    }

    fn order(&mut self, needle: bool) -> (String, Value) {
        let id = format!("o-{:06}", self.made);
        let customer = format!("{} {}", self.pick(&FIRST_NAMES, ""), self.pick(&LAST_NAMES, ""));
        let items: Vec<Value> = (0..self.random.random_range(1..=3))
            .map(|_| {
                let (name, sku) = self.article();
                let quantity = self.random.random_range(1..=4);
                json!({"sku": sku, "name": name, "quantity": quantity, "price": self.price()})
            })
            .collect();
        let note = match (needle, self.random.random_bool(0.3)) {
            (true, _) => format!("for the keeper of the {NEEDLE}, by the evening boat"),
            (false, true) => self.pick(&NOTES, "").to_owned(),
            (false, false) => String::new(),
        };
        let value = json!({
            "order_id": id, "customer": customer, "city": self.pick(&CITIES, ""), "items": items,
            "total": self.price(), "status": self.pick(&ORDER_STATES, ""), "note": note,
        });
        (id, value)
    }

    fn payment(&mut self) -> (String, Value) {
        let order = format!("o-{:06}", self.random.random_range(0..=self.made));
        let (status, message) = self.pick(&PAYMENT_RESULTS, ("", ""));
        let value = json!({
            "payment_id": format!("p-{:06}", self.made), "order_id": order, "method": self.pick(&METHODS, ""),
            "amount": self.price(), "currency": "EUR", "status": status, "message": message,
        });
        (order, value)
    }

    fn stock(&mut self) -> (String, Value) {
        let (name, sku) = self.article();
        let (reason, comment) = self.pick(&STOCK_REASONS, ("", ""));
        let value = json!({
            "sku": sku, "name": name, "warehouse": self.pick(&WAREHOUSES, ""), "reason": reason, "comment": comment,
            "change": self.random.random_range(-5..=40), "level": self.random.random_range(0..=500),
        });
        (sku, value)
    }

    fn article(&mut self) -> (String, String) {
        let (material, thing) = (self.pick(&MATERIALS, ""), self.pick(&GOODS, ""));
        (format!("{material} {thing}"), format!("{thing}-{}", self.random.random_range(10..40)))
    }

    fn price(&mut self) -> f64 {
        f64::from(self.random.random_range(295..19_995)) / 100.0
    }
}

impl Iterator for Shop {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        if self.made >= self.total {
            return None;
        }
        let time_ms = self.time_ms(self.made);
        let needle = self.made == self.needle_at;
        let topic = if needle { 0 } else { self.pick(&[0, 0, 0, 0, 1, 1, 1, 2, 2, 2], 0) };
        let (key, mut value) = match topic {
            0 => self.order(needle),
            1 => self.payment(),
            _ => self.stock(),
        };
        if let (Value::Object(fields), Some(time)) = (&mut value, DateTime::<Utc>::from_timestamp_millis(time_ms)) {
            fields.insert("at".to_owned(), time.to_rfc3339_opts(SecondsFormat::Millis, true).into());
        }
        self.made += 1;
        Some(Event { topic, time_ms, key, value: value.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const END: i64 = 1_700_000_000_000;

    #[test]
    fn events_are_in_order_within_thirty_days() {
        let events: Vec<Event> = Shop::new(7, 3000, END).collect();
        assert_eq!(events.len(), 3000);
        assert!(events.is_sorted_by_key(|event| event.time_ms));
        assert!(events.iter().all(|event| (END - DAYS * DAY_MS..END).contains(&event.time_ms)));
        assert!((0..TOPICS.len()).all(|topic| events.iter().any(|event| event.topic == topic)));
        let last_day = events.iter().filter(|event| event.time_ms >= END - DAY_MS).count();
        assert!((80..120).contains(&last_day), "{last_day} events on the last day");
    }

    #[test]
    fn one_event_has_the_needle_whatever_the_seed() {
        for seed in 0..5 {
            let found: Vec<Event> = Shop::new(seed, 500, END).filter(|event| event.value.contains(NEEDLE)).collect();
            assert_eq!(found.len(), 1);
            assert_eq!(TOPICS[found[0].topic], "orders");
            assert!(serde_json::from_str::<Value>(&found[0].value).is_ok());
        }
    }

    #[test]
    fn the_seed_decides() {
        let values = |seed| Shop::new(seed, 50, END).map(|event| event.value).collect::<Vec<_>>();
        assert_eq!(values(1), values(1));
        assert_ne!(values(1), values(2));
    }
}
